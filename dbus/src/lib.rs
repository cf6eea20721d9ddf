//! Names, types and client proxies of the bus interface `org.ckpt`.
#![forbid(unsafe_code)]

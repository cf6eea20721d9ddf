//! The kernel, safely: everything of ckpt that needs `unsafe` outside the preload library.

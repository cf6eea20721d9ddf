//! The throwaway machine, victims and integration tests.

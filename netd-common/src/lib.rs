//! netd's packet engine: all packet logic, one source for the kernel and for native tests.
#![cfg_attr(not(test), no_std)]

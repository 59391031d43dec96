//! What survives what.

mod drain;
mod kernel_nat;

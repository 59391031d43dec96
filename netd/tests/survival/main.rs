//! What survives what.

mod kernel_nat;

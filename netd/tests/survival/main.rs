//! What survives what: one module per acceptance.

mod host_access;

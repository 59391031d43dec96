//! Build, test, demo and benchmark: one entry for people and CI.
fn main() {}

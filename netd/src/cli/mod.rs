//! The verbs, one file each.

pub mod verifier_stats;

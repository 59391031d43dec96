//! Tests of the whole way from a text to a configuration or to its errors.

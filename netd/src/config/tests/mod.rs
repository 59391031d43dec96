//! Tests of the whole way from a text to a configuration or to its errors.

mod documents;
mod errors;
mod properties;
mod values;

/// A network and nothing else: what most cases add to.
const WEB: &str = r#"version = 1
[[network]]
name = "web"
bridge = "br-web"
subnets = ["10.201.1.0/24", "fd00:201:1::/64"]
"#;

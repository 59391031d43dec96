//! `docs/maps.md` names every map, with the sizes that it has.

use aya::maps::MapType;
use netd::state::shape::SHAPES;

const DOCUMENT: &str = include_str!("../../docs/maps.md");

fn row(name: &str) -> Option<&'static str> {
    let quoted = format!("`{name}`");
    DOCUMENT
        .lines()
        .find(|line| line.starts_with('|') && line.contains(&quoted))
}

#[test]
fn every_map_of_the_abi_is_documented() {
    let missing: Vec<&str> = SHAPES
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| row(name).is_none())
        .collect();
    assert!(
        missing.is_empty(),
        "docs/maps.md has no row for {missing:?}"
    );
}

/// A constant that was added to `abi::map` but not to the shapes would escape the test above.
#[test]
fn every_name_of_the_abi_has_a_shape() {
    let abi = include_str!("../../netd-common/src/abi.rs");
    let start = abi.find("pub mod map {").expect("the module of names");
    let module = &abi[start..];
    let module = &module[..module.find("\n}").expect("its end")];
    let names: Vec<&str> = module
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub const ")?.split('"').nth(1))
        .collect();
    assert!(names.len() >= 23, "{names:?}");
    let shapes: Vec<&str> = SHAPES.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, shapes);
}

#[test]
fn kinds_and_sizes_are_those_of_the_abi() {
    for (name, shape) in SHAPES {
        let row = row(name).unwrap_or_else(|| panic!("no row for {name}"));
        let kind = match shape.kind {
            MapType::Array => "array",
            MapType::Hash => "hash",
            MapType::LruHash => "LRU hash",
            MapType::LpmTrie => "trie",
            MapType::LruPerCpuHash => "LRU per-CPU hash",
            MapType::PerCpuArray => "per-CPU array",
            MapType::RingBuf => "ring buffer",
            other => panic!("{name}: {other:?}"),
        };
        assert!(
            row.contains(&format!("| {kind} |")),
            "{name} is a {kind}: {row}"
        );
        if shape.value == 0 || name.starts_with("EMBRYOS") {
            continue;
        }
        // A number of bytes stands in the parentheses, alone or as one of two families.
        let sizes = row.rsplit_once('(').map_or("", |(_, sizes)| sizes);
        let numbers: Vec<&str> = sizes.split(|c: char| !c.is_ascii_digit()).collect();
        let value = shape.value.to_string();
        assert!(
            numbers.contains(&value.as_str()),
            "{name} has values of {value} bytes: {row}"
        );
    }
}

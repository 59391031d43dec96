//! Files that are no TOML, no text, or not there.

use super::super::super::{Config, ConfigError, DEFAULT_PATH};
use super::super::WEB;
use super::error;

#[test]
fn syntax_errors_are_reported_alone() {
    /// Line, message and a part of the help of each error.
    type Expected = &'static [(usize, &'static str, &'static str)];
    let cases: [(&str, Expected); 7] = [
        (
            "version = 1\n[host]\nmode = replace\npin_dir = /x\nuplinks = 7\n",
            &[
                (3, "string values must be quoted", "write \"replace\""),
                (4, "string values must be quoted", "write \"/x\""),
            ],
        ),
        (
            "version = 1\n[host]\ntrust = ['a', 'b'\n[log]\nlevel = info\nx = y\n",
            &[(
                4,
                "missing comma between array elements",
                "expected `,` here",
            )],
        ),
        (
            "version = 1\n[host\nmode = 'x'\n",
            &[(2, "unclosed table", "expected `]` here")],
        ),
        (
            "version = 1\nversion = 1\n",
            &[(2, "duplicate key", "can appear once")],
        ),
        (
            "version = 1\n[log]\n[log]\n",
            &[(3, "duplicate key", "can appear once")],
        ),
        (
            "{\"version\": 1}",
            &[(1, "invalid key-value pair", "expected key here")],
        ),
        (
            "=\n=\n",
            &[(1, "unquoted keys cannot be empty", "expected letters")],
        ),
    ];
    for (text, expected) in cases {
        let error = error(text);
        let found = error.diagnostics();
        assert_eq!(found.len(), expected.len(), "{error}\nfor\n{text}");
        for (found, (line, message, help)) in found.iter().zip(expected) {
            assert_eq!(
                (found.line, found.message.as_str()),
                (*line, *message),
                "for\n{text}"
            );
            assert!(
                found.help.as_deref().is_some_and(|got| got.contains(help)),
                "{error}"
            );
        }
    }
}

#[test]
fn files_that_cannot_be_read() {
    let root = tempfile::tempdir().unwrap();
    let load = |name: &str, bytes: &[u8]| {
        let path = root.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Config::load(&path)
    };
    let good = load("good.toml", WEB.as_bytes()).unwrap();
    assert_eq!((good.text.as_str(), good.config.networks.len()), (WEB, 1));

    let error = load("latin1.toml", b"version = 1\n# caf\xe9\n").unwrap_err();
    let [found] = error.diagnostics() else {
        panic!("{error}")
    };
    assert_eq!((found.line, found.column), (2, 6));
    assert_eq!(found.message, "this byte is not UTF-8");

    let error = load("bad.toml", b"version = 3\n").unwrap_err();
    assert!(error.diagnostics()[0].file.ends_with("bad.toml"));

    let missing = Config::load(&root.path().join("missing.toml")).unwrap_err();
    assert!(
        matches!(missing, ConfigError::Unreadable { .. }),
        "{missing}"
    );
    assert!(missing.diagnostics().is_empty());
    let directory = Config::load(root.path()).unwrap_err();
    assert!(
        matches!(directory, ConfigError::Unreadable { .. }),
        "{directory}"
    );
    let endless = Config::load("/dev/zero".as_ref()).unwrap_err();
    assert!(matches!(endless, ConfigError::TooLarge { .. }), "{endless}");
    if !std::path::Path::new(DEFAULT_PATH).exists() {
        let missing = Config::load(DEFAULT_PATH.as_ref()).unwrap_err();
        assert!(
            matches!(missing, ConfigError::DefaultFileMissing { .. }),
            "{missing}"
        );
    }
}

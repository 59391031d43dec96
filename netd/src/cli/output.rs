//! Answers on standard output: JSON, tables, numbers for people.

use std::{
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::Exit;
use crate::state::flow::TupleView;

/// Prints a text; a reader that has seen enough (`| head`) is no error.
///
/// # Errors
/// Where standard output cannot be written.
pub fn print(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            std::process::exit(Exit::Done as i32)
        }
        outcome => outcome,
    }
}

/// Prints an answer as indented JSON.
///
/// # Errors
/// Where standard output cannot be written.
pub fn print_json(answer: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(answer)?;
    text.push('\n');
    print(&text)
}

/// Prints the answer as JSON or as text, and returns success.
///
/// # Errors
/// Where standard output cannot be written.
pub fn answer<T: Serialize>(
    json: bool,
    report: &T,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<ExitCode> {
    if json {
        print_json(report)?;
    } else {
        print(&text(report))?;
    }
    Ok(Exit::Done.into())
}

/// A table without lines; columns named in `right` hold numbers.
pub fn table(headers: &[&str], right: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(headers.iter().copied());
    for (header, column) in headers.iter().zip(table.column_iter_mut()) {
        column.set_padding((0, 2));
        if right.contains(header) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The lines of a table, without the blanks at their ends.
pub fn lines(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `1.5 MiB`.
pub fn bytes(n: u64) -> String {
    scaled(n, 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// `1.5 M`; exact below ten thousand.
pub fn count(n: u64) -> String {
    if n < 10_000 {
        n.to_string()
    } else {
        scaled(n, 1000, &["", "k", "M", "G", "T", "P", "E"])
    }
}

fn scaled(n: u64, base: u64, units: &[&str]) -> String {
    let mut unit = 0;
    let mut divisor = 1;
    while n / divisor >= base && unit + 1 < units.len() {
        divisor *= base;
        unit += 1;
    }
    let number = if unit == 0 {
        n.to_string()
    } else {
        let tenths = u128::from(n) * 10 / u128::from(divisor);
        format!("{}.{}", tenths / 10, tenths % 10)
    };
    format!("{number} {}", units[unit]).trim_end().to_owned()
}

/// `45s`, `3m20s`, `4d23h`.
pub fn seconds(n: u32) -> String {
    let (d, h, m, s) = (n / 86_400, n / 3600 % 24, n / 60 % 60, n % 60);
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m{s:02}s"),
        (0, _, _) => format!("{h}h{m:02}m"),
        _ => format!("{d}d{h:02}h"),
    }
}

/// `10.201.1.2:80`, `[fd00::2]:80`, or the address alone.
pub fn address(address: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    }
}

/// `198.18.0.9:40000 → 198.18.0.1:8080`, or with an identifier for an echo.
pub fn tuple(tuple: &TupleView) -> String {
    let id = tuple
        .icmp_id
        .map(|id| format!(" id {id}"))
        .unwrap_or_default();
    let (src, dst) = (
        address(tuple.src, tuple.src_port),
        address(tuple.dst, tuple.dst_port),
    );
    format!("{src} → {dst}{id}")
}

/// The value, or a dash.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        for (n, text) in [(9_999, "9999"), (10_000, "10.0 k"), (2_500_000, "2.5 M")] {
            assert_eq!(count(n), text);
        }
        for (n, text) in [
            (0, "0s"),
            (59, "59s"),
            (200, "3m20s"),
            (3600, "1h00m"),
            (431_990, "4d23h"),
        ] {
            assert_eq!(seconds(n), text);
        }
    }

    #[test]
    fn addresses_with_and_without_ports() {
        assert_eq!(
            address("fd00::2".parse().unwrap(), Some(80)),
            "[fd00::2]:80"
        );
        assert_eq!(address("10.201.1.2".parse().unwrap(), None), "10.201.1.2");
    }

    #[test]
    fn a_table_has_no_blanks_at_the_end_of_a_line() {
        let mut t = table(&["NAME", "N"], &["N"]);
        t.add_row(["a", "5"]);
        t.add_row(["bb", "1234"]);
        assert_eq!(lines(&t), "NAME     N\na        5\nbb    1234\n");
    }
}

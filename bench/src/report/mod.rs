//! What was found: a table for the terminal, JSON for programs, a page with plots for people.

mod html;
mod machine;
mod row;
mod table;

pub use machine::Machine;
pub use row::{Goal, Measure, Row, RowResult};

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::rounds::SideResult;

/// Prints the table, and writes `results.json`, `trials.json` and `index.html`.
pub fn write(output: &Path, rows: &[RowResult], sides: &[SideResult], machine: &Machine) -> Result<()> {
    fs::write(output.join("results.json"), serde_json::to_string_pretty(rows)? + "\n")?;
    let trials = serde_json::json!({ "machine": machine, "sides": sides });
    fs::write(output.join("trials.json"), serde_json::to_string_pretty(&trials)? + "\n")?;
    fs::write(output.join("index.html"), html::page(rows, sides, machine))?;
    println!("{}", table::text(rows, sides, machine));
    println!("results: {}", output.join("results.json").display());
    println!("plots:   {}", output.join("index.html").display());
    Ok(())
}

/// The middle one of some numbers; of an even count the mean of the two.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// A number with as many digits as one wants to read.
pub fn readable(value: f64) -> String {
    match value.abs() {
        size if size >= 1_000.0 => grouped(value.round() as i64),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn grouped(value: i64) -> String {
    let digits = value.abs().to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::{median, readable};

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn numbers_are_rounded_by_their_size() {
        assert_eq!(readable(1_234_567.8), "1,234,568");
        assert_eq!(readable(123.4), "123");
        assert_eq!(readable(12.34), "12.3");
        assert_eq!(readable(1.234), "1.23");
    }
}

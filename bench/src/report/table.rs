//! The tables for the terminal.

use std::fmt::Write;

use super::{Machine, RowResult, median, readable};
use crate::rounds::SideResult;

/// The comparisons, and below them every side by itself.
pub fn text(rows: &[RowResult], sides: &[SideResult], machine: &Machine) -> String {
    let mut comparison =
        vec![["scenario", "unit", "ours", "peer's", "ratio", "spread", "goal", ""].map(str::to_owned)];
    for row in rows {
        let spread = row.spread().map(|(least, most)| format!("{}-{}", readable(least), readable(most)));
        comparison.push([
            row.name.clone(),
            row.unit.clone(),
            RowResult::number(row.ours),
            RowResult::number(row.peer),
            RowResult::number(row.ratio),
            spread.unwrap_or_default(),
            row.goal.clone(),
            row.verdict().to_owned(),
        ]);
    }
    let mut all = vec![
        ["side", "messages/s", "spread", "p50 ms", "p99 ms", "server", "Postgres", "load"].map(str::to_owned),
    ];
    all.extend(sides.iter().map(side));
    let mut text = format!("\n{}\n\n{}", machine.line(), aligned(&comparison));
    for row in rows.iter().filter(|row| !row.note.is_empty()) {
        let _ = writeln!(text, "  {}: {}", row.name, shortened(&row.note));
    }
    let _ = writeln!(text, "\nEach side by itself (the last three: CPU seconds per million messages)\n");
    text.push_str(&aligned(&all));
    text
}

fn side(side: &SideResult) -> [String; 8] {
    let outcomes: Vec<_> = side.rounds.iter().filter_map(|round| round.as_ref().ok()).collect();
    let of = |number: &dyn Fn(&crate::trial::Outcome) -> Option<f64>| {
        let values: Vec<f64> = outcomes.iter().filter_map(|outcome| number(outcome)).collect();
        (median(&values), values)
    };
    let (rate, rates) = of(&|outcome| Some(outcome.rate()));
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rates.iter().copied().fold(0.0, f64::max);
    let million = |used: &dyn Fn(&crate::trial::Outcome) -> f64| {
        let per_million = |outcome: &crate::trial::Outcome| {
            (outcome.messages > 0).then(|| used(outcome) * 1e6 / outcome.messages as f64)
        };
        RowResult::number(of(&per_million).0)
    };
    [
        side.title.clone(),
        RowResult::number(rate),
        if rates.is_empty() {
            "failed".to_owned()
        } else {
            format!("{}-{}", readable(least), readable(most))
        },
        RowResult::number(of(&|outcome| outcome.latency.map(|latency| latency.p50 / 1e3)).0),
        RowResult::number(of(&|outcome| outcome.latency.map(|latency| latency.p99 / 1e3)).0),
        million(&|outcome| outcome.processor.server),
        million(&|outcome| outcome.processor.postgres),
        million(&|outcome| outcome.processor.load),
    ]
}

/// Columns of equal width, the first to the left and the others to the right.
fn aligned(lines: &[[String; 8]]) -> String {
    let mut widths = [0; 8];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in lines {
        for (index, (width, cell)) in widths.iter().zip(line).enumerate() {
            let _ = match index {
                0 => write!(text, "{cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        while text.ends_with(' ') {
            text.pop();
        }
        text.push('\n');
    }
    text
}

/// What does not fit is in `results.json` and on the page.
fn shortened(note: &str) -> String {
    const LETTERS: usize = 160;
    match note.char_indices().nth(LETTERS) {
        Some((end, _)) => format!("{}…", &note[..end]),
        None => note.to_owned(),
    }
}

//! A page of its own, with plots in SVG.

use std::fmt::Write;

use super::{Machine, RowResult, median, readable};
use crate::rounds::SideResult;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1100px;padding:0 1rem;\
    color:#1d2330;background:#fff}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}\
    table{border-collapse:collapse;width:100%}td,th{padding:.3rem .5rem;border-bottom:1px solid #dde1e8;\
    text-align:right;vertical-align:top}td:first-child,th:first-child{text-align:left}.met{color:#14713c}\
    .not{color:#b3261e;font-weight:600}.note{color:#5a6270;font-size:.85em}svg{width:100%;height:auto}\
    text{font:12px system-ui,sans-serif;fill:#1d2330}";

const WIDTH: f64 = 1060.0;
const LABELS: f64 = 380.0;
const LINE: f64 = 26.0;

/// The whole page.
pub fn page(rows: &[RowResult], sides: &[SideResult], machine: &Machine) -> String {
    let met = rows.iter().filter(|row| row.met == Some(true)).count();
    let judged = rows.iter().filter(|row| row.goal != "report").count();
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>pgmq-grpc against its peers</title>\
         <style>{STYLE}</style>\n<h1>pgmq-grpc against its peers</h1>\n<p>{}</p>\n\
         <p>{met} of {judged} goals met. A ratio is ours to the peer's, the median of interleaved rounds.</p>\n\
         <h2>Ratios and goals</h2>\n{}\n<h2>Table</h2>\n{}\n<h2>Messages a second</h2>\n{}\n</html>\n",
        escaped(&machine.line()),
        ratios(rows),
        table(rows),
        rates(sides)
    )
}

/// A line for each comparison on a logarithmic axis: the rounds' spread, their median, and the goal.
fn ratios(rows: &[RowResult]) -> String {
    let rows: Vec<&RowResult> = rows.iter().filter(|row| row.ratio.is_some()).collect();
    let highest = rows.iter().filter_map(|row| row.spread()).map(|(_, most)| most).fold(10.0, f64::max);
    let lowest =
        rows.iter().filter_map(|row| row.spread()).map(|(least, _)| least).fold(0.5, f64::min).max(0.01);
    let (from, to) = (lowest.log10(), highest.log10());
    let x = |ratio: f64| LABELS + (ratio.max(lowest).log10() - from) / (to - from) * (WIDTH - LABELS - 80.0);
    let height = LINE * (rows.len() as f64 + 1.0);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">");
    for tick in [0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0] {
        if tick >= lowest && tick <= highest {
            let at = x(tick);
            let _ = write!(
                svg,
                "<line x1=\"{at:.1}\" y1=\"0\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#e4e7ec\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}</text>",
                height - LINE,
                height - 8.0
            );
        }
    }
    for (index, row) in rows.iter().enumerate() {
        let y = LINE * (index as f64 + 0.5);
        let (ratio, (least, most)) = (row.ratio.unwrap_or_default(), row.spread().unwrap_or_default());
        let color = match row.met {
            Some(true) => "#1b8a4b",
            Some(false) => "#c5352c",
            None => "#4a5a75",
        };
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <line x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"{color}\" stroke-width=\"3\"/>\
             <circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{color}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LABELS - 14.0,
            y + 4.0,
            escaped(&shortened(&row.name, 58)),
            x(least),
            x(most),
            x(ratio),
            x(most) + 10.0,
            y + 4.0,
            readable(ratio)
        );
        if let Some(goal) = row.goal.split(' ').nth(1).and_then(|goal| goal.parse::<f64>().ok()) {
            let at = x(goal);
            let _ = write!(
                svg,
                "<line x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#1d2330\" stroke-width=\"2\">\
                 <title>goal {}</title></line>",
                y - 9.0,
                y + 9.0,
                escaped(&row.goal)
            );
        }
    }
    svg + "</svg><p class=\"note\">Dot: median. Bar: smallest to largest round. Upright mark: goal.</p>"
}

fn table(rows: &[RowResult]) -> String {
    let mut html =
        "<table><tr><th>scenario<th>unit<th>ours<th>peer's<th>ratio<th>spread<th>goal<th></tr>".to_owned();
    for row in rows {
        let spread = row.spread().map(|(least, most)| format!("{}–{}", readable(least), readable(most)));
        let class = if row.met == Some(true) { "met" } else { "not" };
        let _ = write!(
            html,
            "\n<tr><td>{}<div class=\"note\">{}</div><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td class=\"{class}\">{}</tr>",
            escaped(&row.name),
            escaped(&row.note),
            escaped(&row.unit),
            RowResult::number(row.ours),
            RowResult::number(row.peer),
            RowResult::number(row.ratio),
            spread.unwrap_or_default(),
            escaped(&row.goal),
            row.verdict()
        );
    }
    html + "</table>"
}

/// A bar for each side that moves messages.
fn rates(sides: &[SideResult]) -> String {
    let rates = |side: &SideResult| -> Vec<f64> {
        side.rounds.iter().filter_map(|round| round.as_ref().ok()).map(crate::trial::Outcome::rate).collect()
    };
    let highest = sides.iter().flat_map(rates).fold(1.0, f64::max);
    let x = |rate: f64| rate / highest * (WIDTH - LABELS - 120.0);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\">", LINE * sides.len() as f64);
    for (index, side) in sides.iter().enumerate() {
        let (top, all) = (LINE * index as f64 + 4.0, rates(side));
        let middle = median(&all);
        let label = middle.map_or_else(|| "failed".to_owned(), readable);
        let most = all.iter().copied().fold(0.0, f64::max);
        let least = all.iter().copied().fold(most, f64::min);
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LABELS}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#8fb3e0\"/>\
             <line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#27446b\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{label}</text>",
            LABELS - 14.0,
            top + 13.0,
            escaped(&shortened(&side.title, 58)),
            x(middle.unwrap_or_default()),
            LINE - 8.0,
            LABELS + x(least),
            top + 9.0,
            LABELS + x(most),
            top + 9.0,
            LABELS + x(most) + 10.0,
            top + 13.0
        );
    }
    svg + "</svg>"
}

fn shortened(text: &str, letters: usize) -> String {
    match text.char_indices().nth(letters) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

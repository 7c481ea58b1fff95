//! A row of the table: what is compared, what is wanted, and what came of it.

use serde::Serialize;

use super::{median, readable};
use crate::rounds::SideResult;
use crate::trial::Outcome;

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The ratio, or our own figure where there is no peer, is this or more.
    AtLeast(f64),
    /// It is this or less.
    AtMost(f64),
    /// It is only told.
    Report,
}

impl Goal {
    fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Goal::AtLeast(limit) => Some(value >= limit),
            Goal::AtMost(limit) => Some(value <= limit),
            Goal::Report => None,
        }
    }

    /// As in the table: `≥ 12`.
    pub fn text(self) -> String {
        match self {
            Goal::AtLeast(limit) => format!("≥ {limit}"),
            Goal::AtMost(limit) => format!("≤ {limit}"),
            Goal::Report => "report".to_owned(),
        }
    }
}

/// Which number of an outcome is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measure {
    /// Messages a second.
    Rate,
    /// The median latency, in milliseconds.
    P50,
    /// The latency that 99 of 100 do not exceed, in milliseconds.
    P99,
    /// Processor seconds of the server for a million messages.
    ServerSeconds,
    /// A figure of its own, with its unit.
    Figure(&'static str, &'static str),
}

impl Measure {
    fn unit(self) -> &'static str {
        match self {
            Measure::Rate => "messages/s",
            Measure::P50 | Measure::P99 => "ms",
            Measure::ServerSeconds => "CPU s per million messages",
            Measure::Figure(_, unit) => unit,
        }
    }

    fn of(self, outcome: &Outcome) -> Option<f64> {
        match self {
            Measure::Rate => Some(outcome.rate()),
            Measure::P50 => outcome.latency.map(|latency| latency.p50 / 1e3),
            Measure::P99 => outcome.latency.map(|latency| latency.p99 / 1e3),
            Measure::ServerSeconds => outcome.server_seconds_per_million(),
            Measure::Figure(name, _) => outcome.figures.get(name).copied(),
        }
    }

    /// Whether more is better, which decides which of several variants is the best.
    fn more_is_better(self) -> bool {
        self == Measure::Rate
    }
}

/// What is compared.
pub struct Row {
    name: String,
    goal: Goal,
    ours: Vec<String>,
    peer: Vec<String>,
    peer_name: String,
    measure: Measure,
    note: String,
}

impl Row {
    /// A row that compares rates; who with whom comes by [`Row::of`].
    pub fn new(name: &str, goal: Goal) -> Row {
        Row {
            name: name.to_owned(),
            goal,
            ours: Vec::new(),
            peer: Vec::new(),
            peer_name: String::new(),
            measure: Measure::Rate,
            note: String::new(),
        }
    }

    /// Compares another number.
    pub fn measuring(mut self, measure: Measure) -> Row {
        self.measure = measure;
        self
    }

    /// Compares the best of these sides of ours with the best of those of the peer. No peer: our figure alone.
    pub fn of<S: AsRef<str>>(mut self, ours: &[S], peer: &[S], peer_name: &str) -> Row {
        self.ours = ours.iter().map(|id| id.as_ref().to_owned()).collect();
        self.peer = peer.iter().map(|id| id.as_ref().to_owned()).collect();
        self.peer_name = peer_name.to_owned();
        self
    }

    /// Adds what a reader must know, such as a peer that is less durable.
    pub fn noting(mut self, note: &str) -> Row {
        self.note = note.to_owned();
        self
    }

    /// Compares, round by round.
    pub fn evaluate(&self, results: &[SideResult]) -> RowResult {
        let ours = self.best(&self.ours, results);
        let peer = self.best(&self.peer, results);
        let mut result = RowResult {
            name: self.name.clone(),
            unit: self.measure.unit().to_owned(),
            ours: ours.and_then(|side| self.median_of(side)),
            peer: peer.and_then(|side| self.median_of(side)),
            peer_name: self.peer_name.clone(),
            ratio: None,
            goal: self.goal.text(),
            met: None,
            rounds: self.rounds(ours, peer),
            note: self.notes(ours, peer),
        };
        let ratios: Vec<f64> = result.rounds.iter().filter_map(|round| round.ratio).collect();
        result.ratio = median(&ratios);
        let judged = if self.peer.is_empty() { result.ours } else { result.ratio };
        result.met = judged.and_then(|value| self.goal.is_met(value));
        result
    }

    fn rounds(&self, ours: Option<&SideResult>, peer: Option<&SideResult>) -> Vec<Round> {
        let number = |side: Option<&SideResult>, index: usize| {
            let outcome = side?.rounds.get(index)?.as_ref().ok()?;
            self.measure.of(outcome)
        };
        let count = ours.or(peer).map_or(0, |side| side.rounds.len());
        (0..count)
            .map(|index| {
                let (ours, peer) = (number(ours, index), number(peer, index));
                let ratio = ours.zip(peer).filter(|(_, peer)| *peer > 0.0).map(|(ours, peer)| ours / peer);
                Round { ours, peer, ratio }
            })
            .collect()
    }

    /// The side with the best median among these; one without any outcome if there is no other.
    fn best<'a>(&self, ids: &[String], results: &'a [SideResult]) -> Option<&'a SideResult> {
        let sides = results.iter().filter(|side| ids.contains(&side.id));
        sides.max_by(|left, right| {
            let worth = |side: &SideResult| match self.median_of(side) {
                Some(value) if self.measure.more_is_better() => value,
                Some(value) => -value,
                None => f64::NEG_INFINITY,
            };
            worth(left).total_cmp(&worth(right))
        })
    }

    fn median_of(&self, side: &SideResult) -> Option<f64> {
        let outcomes = side.rounds.iter().filter_map(|round| round.as_ref().ok());
        let values: Vec<f64> = outcomes.filter_map(|outcome| self.measure.of(outcome)).collect();
        median(&values)
    }

    /// The note, which of several was the best, and what failed.
    fn notes(&self, ours: Option<&SideResult>, peer: Option<&SideResult>) -> String {
        let mut notes = Vec::new();
        if !self.note.is_empty() {
            notes.push(self.note.clone());
        }
        for (ids, side) in [(&self.ours, ours), (&self.peer, peer)] {
            let Some(side) = side else { continue };
            if ids.len() > 1 && self.median_of(side).is_some() {
                notes.push(format!("best: {}", side.title));
            }
            let errors: Vec<&String> = side.rounds.iter().filter_map(|round| round.as_ref().err()).collect();
            if let Some(error) = errors.first() {
                notes.push(format!(
                    "{}: {} of {} rounds failed: {error}",
                    side.title,
                    errors.len(),
                    side.rounds.len()
                ));
            }
        }
        notes.join("; ")
    }
}

/// A row with its numbers, as in `results.json`. What could not be measured is null.
#[derive(Clone, Debug, Serialize)]
pub struct RowResult {
    /// What is compared.
    pub name: String,
    /// The unit of `ours` and `peer`.
    pub unit: String,
    /// Our median.
    pub ours: Option<f64>,
    /// The peer's median.
    pub peer: Option<f64>,
    /// Who the peer is.
    pub peer_name: String,
    /// The median of the rounds' ratios, ours to the peer's.
    pub ratio: Option<f64>,
    /// What is wanted of the ratio, or of ours where there is no peer.
    pub goal: String,
    /// Whether it is so; null if it is only told, or could not be measured.
    pub met: Option<bool>,
    /// Every round.
    pub rounds: Vec<Round>,
    /// What a reader must know.
    pub note: String,
}

impl RowResult {
    /// The verdict in words.
    pub fn verdict(&self) -> &'static str {
        match self.met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None if self.goal == "report" => "",
            None => "not measured",
        }
    }

    /// The smallest and the largest of the rounds: of the ratios, or of ours where there is no peer.
    pub fn spread(&self) -> Option<(f64, f64)> {
        let alone = self.peer_name.is_empty();
        let values = self.rounds.iter().filter_map(|round| if alone { round.ours } else { round.ratio });
        values.fold(None, |spread, value| match spread {
            None => Some((value, value)),
            Some((least, most)) => Some((f64::min(least, value), f64::max(most, value))),
        })
    }

    /// A number as text, or a dash.
    pub fn number(value: Option<f64>) -> String {
        value.map_or_else(|| "–".to_owned(), readable)
    }
}

/// One round of a row.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Round {
    /// Our number.
    pub ours: Option<f64>,
    /// The peer's.
    pub peer: Option<f64>,
    /// Ours to the peer's.
    pub ratio: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::{Goal, Row, SideResult};
    use crate::trial::Outcome;

    fn side(id: &str, rates: &[Option<u64>]) -> SideResult {
        let outcome = |rate: &Option<u64>| match rate {
            Some(messages) => Ok(Outcome { messages: *messages, seconds: 1.0, ..Outcome::default() }),
            None => Err("it broke".to_owned()),
        };
        SideResult { id: id.to_owned(), title: id.to_owned(), rounds: rates.iter().map(outcome).collect() }
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_with_the_best_variant_of_the_peer() {
        let results = [
            side("ours", &[Some(100), Some(300), Some(200)]),
            side("slow", &[Some(10), Some(10), Some(10)]),
            side("fast", &[Some(50), Some(50), Some(50)]),
        ];

        let row =
            Row::new("row", Goal::AtLeast(4.0)).of(&["ours"], &["slow", "fast"], "peer").evaluate(&results);

        assert_eq!(
            (row.ours, row.peer, row.ratio, row.met),
            (Some(200.0), Some(50.0), Some(4.0), Some(true))
        );
        assert_eq!(row.spread(), Some((2.0, 6.0)));
        assert_eq!(row.note, "best: fast");
    }

    #[test]
    fn a_failed_peer_gives_no_ratio_and_no_verdict() {
        let results = [side("ours", &[Some(100)]), side("peer", &[None])];

        let row = Row::new("row", Goal::AtLeast(4.0)).of(&["ours"], &["peer"], "peer").evaluate(&results);

        assert_eq!((row.peer, row.ratio, row.met, row.verdict()), (None, None, None, "not measured"));
        assert!(row.note.contains("it broke"), "{}", row.note);
    }

    #[test]
    fn a_goal_without_a_peer_is_one_of_our_own_figure() {
        let results = [side("ours", &[Some(100)])];

        let row = Row::new("row", Goal::AtMost(50.0)).of(&["ours"], &[], "").evaluate(&results);

        assert_eq!((row.met, row.verdict()), (Some(false), "NOT MET"));
    }
}

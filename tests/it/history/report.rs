//! Histories as text: a line a call, in the order in which they were asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use super::operators::{List, Move, Shelf, Update};
use super::record::{Action, Call, Empty, History, Outcome, Part, Read, Row, Send, Settle, Verdict};

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = if self.whole { ", whole" } else { "" };
        let key = self.key.as_ref().map(|key| format!(", key {key}")).unwrap_or_default();
        let repeated = if self.repeated { ", repeated" } else { "" };
        write!(
            formatter,
            "{}..{} {} {}{whole}{key}{repeated}",
            self.asked, self.answered, self.who, self.what
        )?;
        match &self.verdict {
            Verdict::Done => write!(formatter, " → done:")?,
            Verdict::Refused(why) => write!(formatter, " → refused ({why}):")?,
            Verdict::Unknown(why) => write!(formatter, " → unknown ({why}):")?,
        }
        for part in &self.parts {
            match part {
                Part::Send(send) => write!(formatter, " [{send}]")?,
                Part::Read(read) => write!(formatter, " [{read}]")?,
                Part::Settle(settle) => write!(formatter, " [{settle}]")?,
                Part::Empty(empty) => write!(formatter, " [{empty}]")?,
                Part::Update(update) => write!(formatter, " [{update}]")?,
                Part::Move(moved) => write!(formatter, " [{moved}]")?,
                Part::List(list) => write!(formatter, " [{list}]")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Send {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "send to {}: {}", self.queue, self.body)?;
        if let Some(group) = &self.group {
            write!(formatter, " of group {group}")?;
        }
        if let Some(key) = &self.key {
            write!(formatter, " with key {key}")?;
        }
        if self.delay > 0 {
            write!(formatter, " delayed {} µs", self.delay)?;
        }
        if let Some((stream, place)) = &self.place {
            write!(formatter, " as number {place} of {stream}")?;
        }
        if let Some(msg_id) = self.msg_id {
            write!(formatter, " is {msg_id}{}", if self.deduplicated { " already" } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Read {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.pops { "pop" } else { "read" };
        let heads = if self.heads { " heads" } else { "" };
        let by_policy = if self.by_policy { " by the policy" } else { "" };
        let waits = if self.waits_by_policy { ", waiting by the policy," } else { "" };
        write!(formatter, "{verb}{heads}{by_policy}{waits} from {}:", self.queue)?;
        for delivery in &self.deliveries {
            write!(
                formatter,
                " {} ({}) read_ct {} enqueued {} read at {} hidden until {} seen {};",
                delivery.msg_id,
                delivery.body,
                delivery.read_ct,
                delivery.enqueued_at,
                delivery.last_read_at,
                delivery.vt,
                delivery.seen
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Settle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by_policy = if self.by_policy { " by the policy" } else { "" };
        write!(formatter, "{:?}{by_policy} in {} ", self.action, self.queue)?;
        write!(formatter, "{:?}: {:?}", self.target, self.outcome)?;
        if let Some(vt) = self.vt {
            write!(formatter, " until {vt}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Empty {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", if self.drops { "drop" } else { "purge" }, self.queue)?;
        match self.count {
            Some(count) => write!(formatter, " of {count}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Update {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} gets {:?}", self.queue, self.policy)
    }
}

impl fmt::Display for Move {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.deletes { "delete" } else { "move" };
        let shelf = match self.from {
            Shelf::Archive => "archive",
            Shelf::DeadLetters => "dead letters",
        };
        write!(formatter, "{verb} {} from the {shelf} of {}", self.most, self.queue)?;
        if let Some(to) = &self.to {
            write!(formatter, " to {to}")?;
        }
        if !self.msg_ids.is_empty() {
            write!(formatter, " of {:?}", self.msg_ids)?;
        }
        if let Some(after) = self.after {
            write!(formatter, " from {after} on")?;
        }
        if let Some(before) = self.before {
            write!(formatter, " before {before}")?;
        }
        write!(formatter, ": {:?}{}", self.count, if self.more { " and more" } else { "" })
    }
}

impl fmt::Display for List {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let archive = if self.archive { "the archive of " } else { "" };
        write!(formatter, "list {archive}{} above {}", self.queue, self.above)?;
        if let Some(state) = self.state {
            write!(formatter, " that is {state:?}")?;
        }
        if !self.msg_ids.is_empty() {
            write!(formatter, " of {:?}", self.msg_ids)?;
        }
        for row in &self.rows {
            let message = &row.message;
            write!(
                formatter,
                " {} ({}) read_ct {} read at {} hidden until {}",
                message.msg_id, message.body, message.read_ct, message.last_read_at, message.vt
            )?;
            if let Some(archived_at) = row.archived_at {
                write!(formatter, " archived {archived_at}")?;
            }
            if let Some(letter) = &row.letter {
                write!(formatter, " was {} of {}", letter.msg_id, letter.queue)?;
            }
            write!(formatter, ";")?;
        }
        write!(formatter, "{}", if self.is_last { " and no more" } else { "" })
    }
}

/// How many calls of each kind there were, and how many messages they moved.
pub(crate) fn counts(history: &History) -> String {
    let mut calls: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let (mut sent, mut delivered, mut settled, mut moved) = (0, 0, 0, 0);
    for call in &history.calls {
        let counted = calls.entry(call.what).or_default();
        let (column, reason) = match &call.verdict {
            Verdict::Done => (0, None),
            Verdict::Refused(reason) => (1, Some(reason)),
            Verdict::Unknown(reason) => (2, Some(reason)),
        };
        counted[column] += 1;
        if let Some(reason) = reason {
            *reasons.entry(reason.clone()).or_default() += 1;
        }
        for part in &call.parts {
            match part {
                Part::Send(send) => sent += usize::from(send.msg_id.is_some()),
                Part::Read(read) => delivered += read.deliveries.len(),
                Part::Settle(settle) => settled += usize::from(settle.outcome.is_some()),
                Part::Empty(_) | Part::Update(_) | Part::List(_) => {}
                Part::Move(move_) => moved += move_.count.unwrap_or_default(),
            }
        }
    }
    let calls =
        calls.iter().map(|(what, [done, refused, unknown])| format!("{what} {done}/{refused}/{unknown}"));
    let mut faults: BTreeMap<String, usize> = BTreeMap::new();
    for fault in &history.faults {
        *faults.entry(fault.what.name()).or_default() += 1;
    }
    let list = |counted: &BTreeMap<String, usize>| {
        counted.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
    };
    format!(
        "calls (done/refused/unknown): {}; why not done: {}; faults: {}; {sent} sends acknowledged, {delivered} deliveries, {settled} settles answered, {moved} messages moved from archives and dead-letter queues",
        calls.collect::<Vec<_>>().join(", "),
        list(&reasons),
        list(&faults),
    )
}

/// What was done to its end at least once: calls by their names, and answers of a kind.
pub(crate) fn reached(history: &History) -> BTreeSet<&'static str> {
    let mut reached = BTreeSet::new();
    let too_large = |call: &Call| call.verdict == Verdict::Refused("MESSAGE_TOO_LARGE".to_owned());
    reached.extend(history.calls.iter().any(too_large).then_some("a message that is too large"));
    for call in history.calls.iter().filter(|call| call.is_done()) {
        reached.insert(call.what);
        reached.extend(call.repeated.then_some("a repeated Transact"));
        for part in &call.parts {
            reached.extend(match part {
                Part::Send(send) if send.deduplicated => Some("a repeated send"),
                Part::Settle(settle) => match settle.outcome {
                    Some(Outcome::Stale) => Some("a receipt that is STALE"),
                    Some(Outcome::NotFound) => Some("a message that is NOT_FOUND"),
                    Some(Outcome::Done) if settle.action == Action::DeadLetter && call.what == "Release" => {
                        Some("a release that goes aside")
                    }
                    Some(Outcome::Done) if settle.action == Action::DeadLetter && call.whole => {
                        Some("a dead letter in a transaction")
                    }
                    Some(Outcome::Done) if settle.action == Action::GiveBack => {
                        Some("a message that is given back")
                    }
                    Some(Outcome::Done) if settle.by_policy => Some("a release by the policy"),
                    Some(Outcome::Done) | None => None,
                },
                Part::Move(moved) if moved.count.is_some_and(|count| count > 0) => {
                    Some(match (moved.from, moved.deletes, moved.msg_ids.is_empty()) {
                        (Shelf::Archive, true, _) => "archived messages that are deleted",
                        (Shelf::Archive, false, _) if moved.to.is_some() => "a replay elsewhere",
                        (Shelf::DeadLetters, _, _) if moved.to.is_some() => "a redrive elsewhere",
                        (Shelf::Archive, false, true) => "a replay by time or count",
                        (Shelf::Archive, false, false) => "a replay by ids",
                        (Shelf::DeadLetters, _, true) => "a redrive by count",
                        (Shelf::DeadLetters, _, false) => "a redrive by ids",
                    })
                }
                Part::Read(read) if read.waits_by_policy => Some("a read that waits by the policy"),
                Part::List(list) if !list.rows.is_empty() => {
                    Some(if list.archive { "a list of an archive" } else { "a list of a queue" })
                }
                _ => None,
            });
        }
    }
    reached
}

/// Writes a whole history to a file below `target/`.
pub(crate) fn write(history: &History, name: &str, head: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/history");
    fs::create_dir_all(&directory).expect("a directory");
    let path = directory.join(format!("{name}.txt"));
    let mut file = BufWriter::new(fs::File::create(&path).expect("a file"));
    let mut lines: Vec<(i64, String)> =
        history.calls.iter().map(|call| (call.asked, call.to_string())).collect();
    lines.extend(
        history
            .faults
            .iter()
            .map(|fault| (fault.from, format!("{}..{} {:?}", fault.from, fault.to, fault.what))),
    );
    lines.sort();
    writeln!(file, "{head}").expect("a line");
    for (_, line) in lines {
        writeln!(file, "{line}").expect("a line");
    }
    for (queue, tables) in &history.at_the_end {
        let rows = |rows: &[Row]| {
            rows.iter().map(|row| format!("{} ({})", row.msg_id, row.body)).collect::<Vec<_>>().join(", ")
        };
        writeln!(file, "at the end {queue} holds: {}", rows(&tables.queue)).expect("a line");
        writeln!(file, "at the end the archive of {queue} holds: {}", rows(&tables.archive)).expect("a line");
    }
    for letter in &history.dead_letters {
        writeln!(file, "at the end there is {letter:?}").expect("a line");
    }
    file.flush().expect("a written file");
    path
}

//! Random histories of a small queue in memory that does everything right, and the same with one thing wrong.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::check;
use super::story::{QUEUE, SECOND, Story, list, moved, read, refused, send, settle, unknown};
use crate::history::operators::{Move, Policy, Shown};
use crate::history::record::{
    Action, DeadLetter, Delivery, History, Micros, Outcome, Part, Row, Settle, Verdict,
};

/// How many random histories a test looks at.
const HISTORIES: u64 = 300;

/// A message in the model's queue.
struct Held {
    msg_id: i64,
    body: String,
    read_ct: i32,
    enqueued_at: Micros,
    last_read_at: Micros,
    vt: Micros,
}

impl Held {
    /// A message that comes now.
    fn new(msg_id: i64, body: String, now: Micros) -> Self {
        Self { msg_id, body, read_ct: 0, enqueued_at: now, last_read_at: 0, vt: now }
    }
}

/// A queue that keeps every promise, and the history that it makes.
struct Model {
    random: StdRng,
    story: Story,
    queue: Vec<Held>,
    archive: Vec<(i64, String)>,
    /// Deliveries whose receipts may be used, old ones too.
    receipts: Vec<Delivery>,
    next_id: i64,
}

impl Model {
    fn run(seed: u64) -> History {
        let mut model = Self {
            random: StdRng::seed_from_u64(seed),
            story: Story::new(),
            queue: Vec::new(),
            archive: Vec::new(),
            receipts: Vec::new(),
            next_id: 1,
        };
        // More often than any of these stories reads a message.
        let policy = Policy { max_receives: Some(1_000), ..Policy::default() };
        model.story.history.policies.insert(QUEUE.to_owned(), policy);
        for _ in 0..200 {
            match model.random.random_range(0..12) {
                0..3 => model.send(),
                3..6 => model.read(),
                6..9 => model.settle(),
                9 => model.replay(),
                10 => model.list(),
                _ => model.story.wait(11),
            }
        }
        for held in model.queue {
            model.story.left(held.msg_id, &held.body);
        }
        for (msg_id, body) in model.archive {
            model.story.archived(msg_id, &body);
        }
        model.story.history
    }

    /// What the caller hears, and whether it happens.
    fn fate(&mut self) -> (Verdict, bool) {
        match self.random.random_range(0..10) {
            0 => (refused("OVERLOADED"), false),
            1 => (unknown(), self.random.random()),
            _ => (Verdict::Done, true),
        }
    }

    fn send(&mut self) {
        let (verdict, happens) = self.fate();
        let count = self.random.random_range(1..4);
        let mut parts = Vec::new();
        for _ in 0..count {
            let msg_id = self.next_id;
            self.next_id += 1;
            let body = format!("body {msg_id}");
            parts.push(send(&body, (verdict == Verdict::Done).then_some(msg_id)));
            if happens {
                self.queue.push(Held::new(msg_id, body, self.story.now));
            }
        }
        self.story.whole(verdict, parts);
    }

    fn read(&mut self) {
        let (verdict, happens) = self.fate();
        let asked = self.story.tick();
        let now = self.story.tick();
        let mut deliveries = Vec::new();
        for held in self.queue.iter_mut().filter(|held| held.vt <= now).take(3) {
            let delivery = Delivery {
                msg_id: held.msg_id,
                read_ct: held.read_ct + 1,
                enqueued_at: held.enqueued_at,
                last_read_at: now,
                vt: now + 20 * SECOND,
                body: held.body.clone(),
                seen: now,
            };
            if happens {
                (held.read_ct, held.last_read_at, held.vt) = (delivery.read_ct, now, delivery.vt);
            }
            deliveries.push(delivery);
        }
        match verdict {
            Verdict::Done => self.receipts.extend(deliveries.iter().cloned()),
            _ => deliveries.clear(),
        }
        self.story.call("ReadBatch", verdict, vec![read(deliveries)]).asked = asked;
    }

    fn settle(&mut self) {
        if self.receipts.is_empty() {
            return;
        }
        let chosen = self.random.random_range(0..self.receipts.len());
        let receipt = self.receipts[chosen].clone();
        let (verdict, happens) = self.fate();
        let actions = [Action::Delete, Action::Archive, Action::DeadLetter, Action::Hide, Action::GiveBack];
        let action = actions[self.random.random_range(0..actions.len())];
        let place = self.queue.iter().position(|held| held.msg_id == receipt.msg_id);
        let is_newest =
            |held: &Held| (held.last_read_at, held.read_ct) == (receipt.last_read_at, receipt.read_ct);
        let outcome = match place {
            None => Outcome::NotFound,
            Some(place) if is_newest(&self.queue[place]) => Outcome::Done,
            Some(_) => Outcome::Stale,
        };
        let hidden = self.random.random_range(0..20) * SECOND;
        let vt = self.story.tick() + if action == Action::GiveBack { 0 } else { hidden };
        if let (Some(place), Outcome::Done, true) = (place, outcome, happens) {
            match action {
                Action::Hide | Action::Extend => self.queue[place].vt = vt,
                Action::GiveBack => {
                    let held = &mut self.queue[place];
                    (held.vt, held.read_ct) = (vt, held.read_ct - 1);
                }
                Action::Delete => drop(self.queue.remove(place)),
                Action::Archive => {
                    let held = self.queue.remove(place);
                    self.archive.push((held.msg_id, held.body));
                }
                Action::DeadLetter => {
                    let Held { msg_id, body, read_ct: handed_over, .. } = self.queue.remove(place);
                    let queue = QUEUE.to_owned();
                    let letter = DeadLetter { queue, msg_id, body, handed_over, reason: String::new() };
                    self.story.history.dead_letters.push(letter);
                }
            }
        }
        let answer = (verdict == Verdict::Done).then_some(outcome);
        let mut part = settle(action, receipt.receipt(), answer);
        if let Part::Settle(settle) = &mut part {
            settle.vt = (!action.removes() && answer == Some(Outcome::Done)).then_some(vt);
        }
        self.story.call("Settle", verdict, vec![part]);
    }
}

impl Model {
    /// Brings some of the archived messages back under new ids.
    fn replay(&mut self) {
        let (verdict, happens) = self.fate();
        let most = self.random.random_range(1..4).min(self.archive.len());
        self.archive.sort_by_key(|(msg_id, _)| *msg_id);
        let found = if happens { self.archive.drain(..most).collect() } else { Vec::new() };
        let count = (verdict == Verdict::Done).then_some(i64::try_from(found.len()).expect("a few"));
        for (_, body) in found {
            let msg_id = self.next_id;
            self.next_id += 1;
            self.queue.push(Held::new(msg_id, body, self.story.now));
        }
        let more = !self.archive.is_empty();
        let part = Move { most: i64::try_from(most).expect("a few"), count, more, ..moved() };
        self.story.call("ReplayArchivedMessages", verdict, vec![Part::Move(part)]);
    }

    /// Lists the queue or its archive.
    fn list(&mut self) {
        let archive = self.random.random();
        let shown = |msg_id: i64, body: &str, held: Option<&Held>| {
            let message = Delivery {
                msg_id,
                read_ct: held.map_or(1, |held| held.read_ct),
                enqueued_at: held.map_or(1_000_000 * SECOND, |held| held.enqueued_at),
                last_read_at: held.map_or(0, |held| held.last_read_at),
                vt: held.map_or(0, |held| held.vt),
                body: body.to_owned(),
                seen: self.story.now,
            };
            Shown { message, archived_at: None, letter: None }
        };
        let mut rows: Vec<Shown> = match archive {
            true => self.archive.iter().map(|(msg_id, body)| shown(*msg_id, body, None)).collect(),
            false => self.queue.iter().map(|held| shown(held.msg_id, &held.body, Some(held))).collect(),
        };
        rows.sort_by_key(|row| row.message.msg_id);
        let what = if archive { "ListArchivedMessages" } else { "ListMessages" };
        self.story.call(what, Verdict::Done, vec![list(archive, rows)]);
    }
}

#[test]
fn healthy_histories_break_no_rule() {
    for seed in 0..HISTORIES {
        let history = Model::run(seed);
        let violations = check(&history);
        assert!(violations.is_empty(), "seed {seed}: {}", violations[0]);
    }
}

/// Changes each random history in one way, where that is possible, and checks that a rule finds it.
#[track_caller]
fn every_change_is_found(mut change: impl FnMut(&mut History, &mut StdRng) -> bool) {
    let mut changed = 0;
    for seed in 0..HISTORIES {
        let mut history = Model::run(seed);
        if change(&mut history, &mut StdRng::seed_from_u64(seed)) {
            changed += 1;
            assert!(!check(&history).is_empty(), "seed {seed}: the change is not found");
        }
    }
    assert!(changed > HISTORIES / 10, "only {changed} histories were changed");
}

#[test]
fn a_dead_letter_that_is_lost_is_found() {
    every_change_is_found(|history, random| {
        let letters = history.dead_letters.len();
        // One of unknown outcome may be any of several messages' end.
        let answered = |letter: &DeadLetter| {
            let settles = history.calls.iter().filter(|call| call.is_done()).flat_map(|call| &call.parts);
            settles.into_iter().any(|part| {
                matches!(part, Part::Settle(Settle { action: Action::DeadLetter, target, outcome: Some(Outcome::Done), .. })
                    if target.msg_id() == letter.msg_id)
            })
        };
        let sure: Vec<usize> = (0..letters).filter(|&place| answered(&history.dead_letters[place])).collect();
        let Some(&place) = sure.get(random.random_range(0..sure.len().max(1))) else { return false };
        history.dead_letters.remove(place);
        true
    });
}

fn rows(history: &mut History) -> &mut Vec<Row> {
    &mut history.at_the_end.get_mut(QUEUE).expect("the queue").queue
}

#[test]
fn a_row_that_disappears_is_found() {
    every_change_is_found(|history, random| {
        // A message whose settles all failed for certain, or that nobody touched, and whose send was acknowledged.
        let settled: Vec<i64> = history
            .calls
            .iter()
            .flat_map(|call| &call.parts)
            .filter_map(|part| match part {
                Part::Settle(settle) => Some(settle.target.msg_id()),
                _ => None,
            })
            .collect();
        let acknowledged: Vec<i64> = history
            .calls
            .iter()
            .flat_map(|call| &call.parts)
            .filter_map(|part| match part {
                Part::Send(send) => send.msg_id,
                _ => None,
            })
            .collect();
        let mut places = rows(history)
            .iter()
            .enumerate()
            .filter(|(_, row)| acknowledged.contains(&row.msg_id) && !settled.contains(&row.msg_id))
            .map(|(place, _)| place)
            .collect::<Vec<_>>();
        if places.is_empty() {
            return false;
        }
        let place = places.swap_remove(random.random_range(0..places.len()));
        rows(history).remove(place);
        true
    });
}

#[test]
fn a_row_from_nowhere_is_found() {
    every_change_is_found(|history, _| {
        rows(history).push(Row { msg_id: 9_999, body: "ghost".to_owned() });
        true
    });
}

#[test]
fn a_delivery_told_twice_is_found() {
    every_change_is_found(|history, random| {
        let reads: Vec<usize> = history.calls.iter().enumerate().filter(|(_, call)| {
            matches!(call.parts.as_slice(), [Part::Read(read)] if !read.deliveries.is_empty())
        }).map(|(place, _)| place).collect();
        if reads.is_empty() {
            return false;
        }
        let copy = history.calls[reads[random.random_range(0..reads.len())]].clone();
        history.calls.push(copy);
        true
    });
}

#[test]
fn a_message_deleted_for_two_callers_is_found() {
    every_change_is_found(|history, _| {
        let deletes = |part: &Part| {
            let is_delete =
                |settle: &Settle| settle.action == Action::Delete && settle.outcome == Some(Outcome::Done);
            matches!(part, Part::Settle(settle) if is_delete(settle))
        };
        let Some(call) = history.calls.iter().find(|call| call.parts.iter().any(deletes)) else {
            return false;
        };
        let copy = call.clone();
        history.calls.push(copy);
        true
    });
}

/// The rows of the queue whose messages have come back, and whose end nobody can have lost.
fn came_back(history: &History) -> Vec<usize> {
    let parts = || history.calls.iter().flat_map(|call| call.parts.iter().map(move |part| (call, part)));
    let acknowledged: Vec<i64> = parts()
        .filter_map(|(_, part)| match part {
            Part::Send(send) => send.msg_id,
            _ => None,
        })
        .collect();
    let bodies: BTreeMap<i64, &str> = parts()
        .filter_map(|(_, part)| match part {
            Part::Read(read) => Some(&read.deliveries),
            _ => None,
        })
        .flatten()
        .map(|delivery| (delivery.msg_id, delivery.body.as_str()))
        .collect();
    let open: Vec<&str> = parts()
        .filter_map(|(call, part)| match part {
            Part::Settle(settle) if !call.is_done() => Some(bodies[&settle.target.msg_id()]),
            _ => None,
        })
        .collect();
    let is_sure = |row: &Row| {
        let first: i64 = row.body.trim_start_matches("body ").parse().expect("a number");
        acknowledged.contains(&first) && first != row.msg_id && !open.contains(&row.body.as_str())
    };
    let rows = history.at_the_end[QUEUE].queue.iter().enumerate();
    rows.filter(|(_, row)| is_sure(row)).map(|(place, _)| place).collect()
}

#[test]
fn a_replayed_message_that_is_lost_is_found() {
    every_change_is_found(|history, random| {
        let places = came_back(history);
        let Some(&place) = places.get(random.random_range(0..places.len().max(1))) else { return false };
        rows(history).remove(place);
        true
    });
}

#[test]
fn a_replayed_message_that_came_twice_is_found() {
    every_change_is_found(|history, random| {
        let places = came_back(history);
        let Some(&place) = places.get(random.random_range(0..places.len().max(1))) else { return false };
        let body = rows(history)[place].body.clone();
        rows(history).push(Row { msg_id: 9_999, body });
        true
    });
}

#[test]
fn a_replayed_message_that_is_archived_still_is_found() {
    every_change_is_found(|history, random| {
        let places = came_back(history);
        let Some(&place) = places.get(random.random_range(0..places.len().max(1))) else { return false };
        let body = rows(history)[place].body.clone();
        let msg_id = body.trim_start_matches("body ").parse().expect("a number");
        history.at_the_end.get_mut(QUEUE).expect("the queue").archive.push(Row { msg_id, body });
        true
    });
}

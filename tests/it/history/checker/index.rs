//! A history by message, by body and by queue.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::policies::Policies;
use crate::history::operators::{List, Move, Shown};
use crate::history::record::{
    AFTERMATH, Action, Call, DeadLetter, Delivery, Empty, Fault, FaultKind, History, Micros, Outcome, Part,
    Read, Send, Settle,
};

/// A queue's name and a message's id.
pub(super) type Id<'a> = (&'a str, i64);

/// A history, looked at from each side.
pub(super) struct Index<'a> {
    pub(super) history: &'a History,
    /// What is known of each message of which an id is known.
    pub(super) messages: BTreeMap<Id<'a>, Message<'a>>,
    /// The sends of each body.
    pub(super) bodies: HashMap<(&'a str, &'a str), Vec<Sent<'a>>>,
    /// The reads of each queue that may have taken more than their callers saw.
    lossy_reads: HashMap<&'a str, Vec<(Micros, Micros, bool)>>,
    /// The purges and drops of each queue that may have happened.
    emptied: HashMap<&'a str, Vec<Emptied<'a>>>,
    /// The queues that streams read.
    streamed: HashSet<&'a str>,
    /// The queues to which messages may have been moved, each with the other queues that they came from.
    moved_into: HashMap<&'a str, BTreeSet<&'a str>>,
    /// What may have been moved from a shelf, or deleted there.
    pub(super) moves: Vec<Moved<'a>>,
    /// The pages that were answered.
    pub(super) lists: Vec<Listed<'a>>,
    pub(super) policies: Policies<'a>,
    faults: Vec<(Micros, Micros)>,
}

/// A part with the call that it is of.
#[derive(Clone, Copy)]
pub(super) struct Sent<'a> {
    pub(super) call: &'a Call,
    pub(super) send: &'a Send,
}

/// A delivery with the call and the read that gave it.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) call: &'a Call,
    pub(super) read: &'a Read,
    pub(super) delivery: &'a Delivery,
}

/// A settle with the call that it is of.
#[derive(Clone, Copy)]
pub(super) struct Settled<'a> {
    pub(super) call: &'a Call,
    pub(super) settle: &'a Settle,
}

/// A purge or a drop with the call that it is of.
#[derive(Clone, Copy)]
pub(super) struct Emptied<'a> {
    pub(super) call: &'a Call,
    pub(super) empty: &'a Empty,
}

/// A move with the call that it is of.
#[derive(Clone, Copy)]
pub(super) struct Moved<'a> {
    pub(super) call: &'a Call,
    pub(super) moved: &'a Move,
}

/// A page with the call that gave it.
#[derive(Clone, Copy)]
pub(super) struct Listed<'a> {
    pub(super) call: &'a Call,
    pub(super) list: &'a List,
}

/// A message on a page.
#[derive(Clone, Copy)]
pub(super) struct OnPage<'a> {
    pub(super) call: &'a Call,
    pub(super) archive: bool,
    pub(super) shown: &'a Shown,
}

/// Everything that is known of a message.
#[derive(Default)]
pub(super) struct Message<'a> {
    /// The sends that were acknowledged with its id.
    pub(super) sends: Vec<Sent<'a>>,
    /// Its deliveries, but those of reads that were rolled back or may have been, in the order of the database's clock.
    pub(super) deliveries: Vec<Seen<'a>>,
    /// The pops that took it.
    pub(super) pops: Vec<Seen<'a>>,
    /// Its deliveries by reads that were rolled back or may have been.
    pub(super) undone: Vec<Seen<'a>>,
    /// The settles that meant it, in the order in which they were asked for.
    pub(super) settles: Vec<Settled<'a>>,
    /// Its body in the queue at the end.
    pub(super) in_queue: Option<&'a str>,
    /// Its bodies in the archive at the end.
    pub(super) in_archive: Vec<&'a str>,
    /// What it is in the dead-letter queue at the end.
    pub(super) letters: Vec<&'a DeadLetter>,
    /// What it was in the dead-letter queue while somebody looked.
    pub(super) letters_shown: Vec<(&'a Call, &'a DeadLetter)>,
    /// Its id in the dead-letter queue then.
    pub(super) id_as_letter: Option<i64>,
    /// Where it stood on the pages of lists.
    pub(super) shown: Vec<OnPage<'a>>,
}

impl Seen<'_> {
    /// When the read of this delivery began at the earliest: of a stream the database knows.
    pub(super) fn began(&self) -> Micros {
        if self.read.stream { self.delivery.last_read_at } else { self.call.asked }
    }
}

impl Settled<'_> {
    pub(super) fn is_done(&self) -> bool {
        self.settle.outcome == Some(Outcome::Done) && self.call.is_done()
    }

    /// Whether it may have changed its message, for all that anybody knows.
    pub(super) fn may_have_happened(&self) -> bool {
        self.is_done() || self.call.is_unknown()
    }

    pub(super) fn may_have_removed(&self) -> bool {
        self.settle.action.removes() && self.may_have_happened()
    }

    /// A repeated answer says that it happened, but not when.
    pub(super) fn removed(&self) -> bool {
        self.settle.action.removes() && self.is_done()
    }

    pub(super) fn archived(&self) -> bool {
        self.settle.action == Action::Archive && self.is_done()
    }

    /// Whether the message may have come to where a move finds it.
    pub(super) fn may_have_shelved(&self) -> bool {
        matches!(self.settle.action, Action::Archive | Action::DeadLetter) && self.may_have_happened()
    }

    /// Whether the message may be gone for good by it.
    pub(super) fn may_have_ended(&self) -> bool {
        self.may_have_removed() && !self.archived() && self.settle.action != Action::DeadLetter
    }
}

impl Emptied<'_> {
    /// When it had happened at the latest, if it happened.
    pub(super) fn ends(&self) -> Micros {
        self.call.ends()
    }
}

impl<'a> Message<'a> {
    /// When it was sent, at the earliest; none if its send is not known.
    pub(super) fn sent_at(&self) -> Option<Micros> {
        self.sends.iter().map(|sent| sent.call.asked).min()
    }

    /// Its bodies in queue, archive and dead-letter queue at the end: one, if all is well and it is still somewhere.
    pub(super) fn stored(&self) -> impl Iterator<Item = &'a str> {
        let letters = self.letters.iter().map(|letter| letter.body.as_str());
        self.in_queue.into_iter().chain(self.in_archive.iter().copied()).chain(letters)
    }

    /// Its reads, those of transactions that were rolled back among them.
    fn reads(&self) -> impl Iterator<Item = &Seen<'a>> {
        self.deliveries.iter().chain(&self.pops).chain(&self.undone)
    }

    /// Its body, if anybody has seen it.
    pub(super) fn body(&self) -> Option<&'a str> {
        let sent = self.sends.iter().map(|sent| sent.send.body.as_str());
        let reads = self.reads().map(|seen| seen.delivery.body.as_str());
        let shown = self.shown.iter().map(|page| page.shown.message.body.as_str());
        let letters = self.letters_shown.iter().map(|(_, letter)| letter.body.as_str());
        sent.chain(reads).chain(shown).chain(letters).next().or_else(|| self.stored().next())
    }

    /// By when it was there for certain.
    pub(super) fn there_by(&self) -> Micros {
        let sent = self.sends.iter().map(|sent| sent.call.answered);
        let reads = self.reads().map(|seen| seen.delivery.seen);
        let shown = self.shown.iter().map(|page| page.call.answered);
        let letters = self.letters_shown.iter().map(|(call, _)| call.answered);
        sent.chain(reads).chain(shown).chain(letters).min().unwrap_or(Micros::MAX)
    }

    /// What gave a delivery back, or may have done so.
    pub(super) fn give_backs<'m>(&'m self, of: &Delivery) -> impl Iterator<Item = &'m Settled<'a>> {
        let receipt = of.receipt();
        self.settles.iter().filter(move |settled| {
            settled.settle.action == Action::GiveBack
                && settled.settle.target == receipt
                && settled.may_have_happened()
        })
    }

    /// When it came to its queue, by the database's clock.
    pub(super) fn came_at(&self) -> Option<Micros> {
        let reads = self.reads().map(|seen| seen.delivery.enqueued_at);
        reads.chain(self.shown.iter().map(|page| page.shown.message.enqueued_at)).next()
    }

    /// When it was archived, as lists show it.
    pub(super) fn archived_at(&self) -> Option<Micros> {
        self.shown.iter().find_map(|page| page.shown.archived_at)
    }

    /// The call that gave the message to a caller, by the moment of the read.
    pub(super) fn delivery_at(&self, last_read_at: Micros) -> Option<&Seen<'a>> {
        self.deliveries.iter().find(|seen| seen.delivery.last_read_at == last_read_at)
    }
}

impl<'a> Index<'a> {
    pub(super) fn of(history: &'a History) -> Self {
        let mut index = Self {
            history,
            messages: BTreeMap::new(),
            bodies: HashMap::new(),
            lossy_reads: HashMap::new(),
            emptied: HashMap::new(),
            streamed: HashSet::new(),
            moved_into: HashMap::new(),
            moves: Vec::new(),
            lists: Vec::new(),
            policies: Policies::of(history),
            faults: history
                .faults
                .iter()
                .filter(|fault| fault.what.breaks_connections())
                .map(|fault| (fault.from, fault.to))
                .collect(),
        };
        for call in &history.calls {
            for part in &call.parts {
                index.add(call, part);
            }
        }
        for (queue, tables) in &history.at_the_end {
            for row in &tables.queue {
                index.messages.entry((queue, row.msg_id)).or_default().in_queue = Some(&row.body);
            }
            for row in &tables.archive {
                index.messages.entry((queue, row.msg_id)).or_default().in_archive.push(&row.body);
            }
        }
        for letter in &history.dead_letters {
            index.messages.entry((&letter.queue, letter.msg_id)).or_default().letters.push(letter);
        }
        for message in index.messages.values_mut() {
            message.deliveries.sort_by_key(|seen| (seen.delivery.last_read_at, seen.delivery.read_ct));
            message.settles.sort_by_key(|settled| settled.call.asked);
        }
        index
    }

    fn add(&mut self, call: &'a Call, part: &'a Part) {
        match part {
            Part::Send(send) => {
                let sent = Sent { call, send };
                self.bodies.entry((&send.queue, &send.body)).or_default().push(sent);
                if let (Some(msg_id), true) = (send.msg_id, call.is_done()) {
                    self.messages.entry((&send.queue, msg_id)).or_default().sends.push(sent);
                }
            }
            Part::Read(read) => {
                if read.stream {
                    self.streamed.insert(&read.queue);
                }
                if !call.is_done() {
                    let lossy = self.lossy_reads.entry(&read.queue).or_default();
                    lossy.push((call.asked, call.answered, read.pops));
                }
                for delivery in &read.deliveries {
                    // What a stream's client leaves for half of its timeout is given back, and more with it.
                    if read.stream
                        && delivery.seen - delivery.last_read_at > (delivery.vt - delivery.last_read_at) / 2
                    {
                        let lossy = self.lossy_reads.entry(&read.queue).or_default();
                        lossy.push((delivery.last_read_at, delivery.seen, false));
                    }
                    let message = self.messages.entry((&read.queue, delivery.msg_id)).or_default();
                    let seen = Seen { call, read, delivery };
                    let may_be_undone = call.is_refused() || call.whole && call.is_unknown();
                    match (may_be_undone, read.pops) {
                        (true, _) => message.undone.push(seen),
                        (false, true) => message.pops.push(seen),
                        (false, false) => message.deliveries.push(seen),
                    }
                }
            }
            Part::Settle(settle) => {
                let message = self.messages.entry((&settle.queue, settle.target.msg_id())).or_default();
                message.settles.push(Settled { call, settle });
            }
            Part::Empty(empty) if !call.is_refused() => {
                self.emptied.entry(&empty.queue).or_default().push(Emptied { call, empty });
            }
            Part::Move(moved) if !call.is_refused() => {
                self.moves.push(Moved { call, moved });
                if !moved.deletes {
                    let sources = self.moved_into.entry(moved.target()).or_default();
                    sources.extend(moved.to.as_ref().map(|_| moved.queue.as_str()));
                }
            }
            Part::List(list) if call.is_done() => {
                self.lists.push(Listed { call, list });
                for shown in &list.rows {
                    if let Some(letter) = &shown.letter {
                        let message = self.messages.entry((&letter.queue, letter.msg_id)).or_default();
                        message.letters_shown.push((call, letter));
                        message.id_as_letter = Some(shown.message.msg_id);
                    } else {
                        let message = self.messages.entry((&list.queue, shown.message.msg_id)).or_default();
                        message.shown.push(OnPage { call, archive: list.archive, shown });
                    }
                }
            }
            Part::Empty(_) | Part::Move(_) | Part::List(_) | Part::Update(_) => {}
        }
    }

    /// Whether a read of the queue that nobody heard of may have happened between two moments of this process.
    pub(super) fn may_have_read_unseen(&self, queue: &str, after: Micros, before: Micros) -> bool {
        let overlaps = |from: Micros, to: Micros| from <= before && to + AFTERMATH >= after;
        let lossy = self
            .lossy_reads
            .get(queue)
            .is_some_and(|reads| reads.iter().any(|&(from, to, _)| overlaps(from, to)));
        lossy || self.faults.iter().any(|&(from, to)| overlaps(from, to))
    }

    /// Whether messages may have come to a queue by moves.
    pub(super) fn is_moved_into(&self, queue: &str) -> bool {
        self.moved_into.contains_key(queue)
    }

    /// The other queues from which messages may have been moved to a queue.
    pub(super) fn sources_of(&self, queue: &str) -> impl Iterator<Item = &'a str> {
        self.moved_into.get(queue).into_iter().flatten().copied()
    }

    /// The sends of a body to a queue, and to those from which it may have been moved there.
    pub(super) fn sends_of(&self, queue: &'a str, body: &'a str) -> Vec<Sent<'a>> {
        let queues = std::iter::once(queue).chain(self.sources_of(queue));
        queues.filter_map(|queue| self.bodies.get(&(queue, body))).flatten().copied().collect()
    }

    /// Whether streams read a queue at any time.
    pub(super) fn is_streamed(&self, queue: &str) -> bool {
        self.streamed.contains(queue)
    }

    /// Whether a pop of the queue that nobody heard of may have taken a message since a moment of this process.
    pub(super) fn may_have_popped_unseen(&self, queue: &str, after: Micros) -> bool {
        let reads = self.lossy_reads.get(queue);
        reads.is_some_and(|reads| reads.iter().any(|&(_, to, pops)| pops && to + AFTERMATH >= after))
    }

    /// The purges and drops of a queue that may have happened after a moment of this process.
    pub(super) fn emptied_since(&self, queue: &str, after: Micros) -> impl Iterator<Item = &Emptied<'a>> {
        let emptied = self.emptied.get(queue).map(Vec::as_slice).unwrap_or_default();
        emptied.iter().filter(move |emptied| emptied.ends() >= after)
    }

    /// All purges and drops that may have happened.
    pub(super) fn all_emptied(&self) -> impl Iterator<Item = &Emptied<'a>> {
        self.emptied.values().flatten()
    }

    /// Whether a queue was dropped, or may have been, at any time.
    pub(super) fn may_be_dropped(&self, queue: &str) -> bool {
        self.emptied_since(queue, Micros::MIN).any(|emptied| emptied.empty.drops)
    }

    /// Whether something was done to a queue, or to the system, near a span of time.
    pub(super) fn is_disturbed(&self, queue: &str, from: Micros, to: Micros) -> bool {
        self.faults_near(from, to).any(|fault| fault.what.concerns(queue))
    }

    /// Whether a server may have ended, and its calls with it, near a span of time.
    pub(super) fn may_end_servers(&self, from: Micros, to: Micros) -> bool {
        self.faults_near(from, to).any(|fault| matches!(fault.what, FaultKind::ServerEnded(_)))
    }

    fn faults_near(&self, from: Micros, to: Micros) -> impl Iterator<Item = &'a Fault> {
        let faults = self.history.faults.iter();
        faults.filter(move |fault| fault.from <= to && fault.to + AFTERMATH >= from)
    }
}

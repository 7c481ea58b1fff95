//! Looks that are shared: one statement serves all watched queues that have asked before it begins.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Mutex as Turns, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::domain::{Deadline, Error, Result};
use crate::pg::{Database, Glance, Sighting};
use crate::queue::Broker;

/// How far apart the moments are at which all queues are looked at of which nothing was told.
const ROUND: Duration = Duration::from_millis(900);

/// How long one statement may take: as long as a merged one, so that a session that does both in turn keeps its limit.
const LOOK_TIME: Duration = Duration::from_secs(15);

/// The longest rest between two statements; else it is as long as the first of them took.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// Where watched queues ask for looks. Those of which something was told do not wait for the others, which may be many.
pub(super) struct Looks {
    /// For looks at once.
    pub(super) told: Arc<Line>,
    /// For looks in the next round, at what others may have changed.
    pub(super) round: Arc<Line>,
    began: Instant,
}

/// Those who have asked, and the turn to look for all of them.
pub(super) struct Line {
    asked: Mutex<Vec<Asked>>,
    turn: Arc<Turns<Turn>>,
}

struct Turn {
    /// When the next statement may begin.
    rested: Instant,
    /// The moment of the round that was begun last.
    round: Instant,
    /// Whether who looks may leave it at finding that nothing was committed since; none where that is not all that counts.
    quiet: Option<bool>,
}

struct Asked {
    glance: Glance,
    answer: oneshot::Sender<Result<Seen>>,
}

/// What a look found; nothing if nothing was committed since the look before.
pub(super) type Seen = Option<Sighting>;

/// The place of one who has asked. Who drops it leaves the line.
pub(super) struct Ticket(oneshot::Receiver<Result<Seen>>);

impl Default for Looks {
    fn default() -> Self {
        let line = |quiet| {
            let turn = Turn { rested: Instant::now(), round: Instant::now(), quiet };
            Arc::new(Line { asked: Mutex::default(), turn: Arc::new(Turns::new(turn)) })
        };
        Self { told: line(None), round: line(Some(false)), began: Instant::now() }
    }
}

impl Looks {
    /// The moment of the next round, which is the same for all.
    pub(super) fn next_round(&self) -> Instant {
        let rounds = self.began.elapsed().as_millis() / ROUND.as_millis() + 1;
        self.began + ROUND * u32::try_from(rounds).unwrap_or(u32::MAX)
    }
}

impl Line {
    /// Asks for a look, which somebody takes who waits for an answer.
    pub(super) fn ask(&self, glance: Glance) -> Ticket {
        let (answer, answered) = oneshot::channel();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        // Where something is always told, nobody ever looks in a round.
        if asked.len() == asked.capacity() {
            asked.retain(|asked| !asked.answer.is_closed());
        }
        asked.push(Asked { glance, answer });
        Ticket(answered)
    }

    /// Gives the answer to one who has asked. Who comes first looks for all. Not to be dropped before its end: others may wait
    /// for the same look.
    ///
    /// # Errors
    /// `QueueNotFound`, or why the queue cannot be looked at.
    pub(super) async fn answer(&self, database: &Database, mut ticket: Ticket) -> Result<Seen> {
        let mut turn = self.turn.lock().await;
        match ticket.0.try_recv() {
            Ok(answer) => return answer,
            Err(TryRecvError::Closed) => return Err(lost()),
            Err(TryRecvError::Empty) => {}
        }
        self.take_turn(database, &mut turn).await;
        drop(turn);
        ticket.answered().await
    }

    /// Has a task look for all who have asked for the round of a moment, unless somebody has begun it, or the one before still
    /// lasts.
    pub(super) fn begin(self: &Arc<Self>, round: Instant, broker: &Broker) {
        if let Ok(mut turn) = Arc::clone(&self.turn).try_lock_owned()
            && turn.round < round
        {
            turn.round = round;
            let (line, database) = (Arc::clone(self), broker.database.clone());
            broker.tasks.spawn(async move { line.take_turn(&database, &mut turn).await });
        }
    }

    async fn take_turn(&self, database: &Database, turn: &mut Turn) {
        sleep_until(turn.rested).await;
        let begun = Instant::now();
        self.look_for_all(database, &mut turn.quiet).await;
        turn.rested = Instant::now() + begun.elapsed().min(LONGEST_REST);
    }

    async fn look_for_all(&self, database: &Database, quiet: &mut Option<bool>) {
        let connected = database.connect("watch", Deadline::within(LOOK_TIME)).await;
        // What was asked during the wait for a connection goes along.
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner));
        asked.retain(|asked| !asked.answer.is_closed());
        let mut connection = match connected {
            Ok(connection) => connection,
            Err(error) => return answer_all(asked, &Err(error)),
        };
        // A database where much happens is not asked first.
        if *quiet == Some(true) {
            match connection.watched_state().await {
                Ok(state) => {
                    let same = |asked: &mut Asked| asked.glance.state.as_ref() == Some(&state);
                    answer_all(asked.extract_if(.., same).collect(), &Ok(()));
                }
                Err(error) => return answer_all(asked, &Err(error)),
            }
        }
        let (glances, answers): (Vec<Glance>, Vec<_>) =
            asked.into_iter().map(|asked| (asked.glance, Some(asked.answer))).unzip();
        let mut answers: Vec<Option<oneshot::Sender<_>>> = answers;
        let mut nothing_happened = true;
        let answer = |index: usize, sighting: Result<Sighting>| {
            let seen_before = glances.get(index).and_then(|glance| glance.state.as_ref());
            nothing_happened &= sighting.as_ref().is_ok_and(|now| seen_before == Some(&now.state));
            if let Some(answer) = answers.get_mut(index).and_then(Option::take) {
                let _ = answer.send(sighting.map(Some));
            }
        };
        connection.look_at_each(&glances, LOOK_TIME, answer).await;
        *quiet = quiet.map(|_| nothing_happened);
    }
}

/// Tells all the same: why they cannot be answered, or that nothing has changed.
fn answer_all(asked: Vec<Asked>, answer: &Result<()>) {
    for asked in asked {
        let _ = asked.answer.send(answer.clone().map(|()| None));
    }
}

impl Ticket {
    /// Waits until somebody has looked.
    ///
    /// # Errors
    /// As [`Line::answer`].
    pub(super) async fn answered(&mut self) -> Result<Seen> {
        (&mut self.0).await.unwrap_or_else(|_| Err(lost()))
    }
}

/// Who looked for all panicked.
fn lost() -> Error {
    Error::internal("the task that looked at watched queues panicked")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::QueueName;

    #[tokio::test]
    async fn nothing_is_kept_of_those_who_left_a_line_in_which_nobody_looks() {
        let looks = Looks::default();
        let queue = QueueName::try_from("a".to_owned()).expect("a good name");
        let ask = || looks.round.ask(Glance { queue: queue.clone(), since: None, state: None });
        let waiting = ask();
        for _ in 0..1_000 {
            drop(ask());
        }
        let asked = looks.round.asked.lock().expect("no panic");
        assert!(asked.len() < 10 && asked.iter().any(|asked| !asked.answer.is_closed()), "{}", asked.len());
        drop(waiting);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_round_is_the_same_for_all_until_it_has_begun() {
        let looks = Looks::default();
        let round = looks.next_round();
        tokio::time::advance(ROUND / 2).await;
        assert_eq!(looks.next_round(), round);
        sleep_until(round).await;
        assert_eq!(looks.next_round(), round + ROUND);
    }
}

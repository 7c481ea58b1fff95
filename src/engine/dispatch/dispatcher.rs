//! The one reader of a class: a task that reads while somebody wants something and something may be there.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::{Instant, sleep_until};

use super::Dispatch;
use super::class::{Class, Found, Step};
use super::handover::Handover;
use super::source::Session;
use crate::domain::{Error, Kind, Result, Taken, Timestamp, error};
use crate::engine::Changes;

/// How long a dispatcher stays that nobody subscribes to, for callers who come and go.
const LINGER: Duration = Duration::from_secs(5);

/// The pause after a failure of the database.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Ends a class whose dispatcher panicked: nobody may wait for what does not come any more.
struct WhenPanicking<'a> {
    dispatch: &'a Dispatch,
    class: &'a Arc<Class>,
}

impl Drop for WhenPanicking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dispatch.forget_for_ever(self.class);
            self.class.lock().share.fail_all(&Error::internal("the task that reads for others panicked"));
        }
    }
}

/// Reads for a class until nobody subscribes any more or the server ends.
pub(super) async fn run(dispatch: Dispatch, class: Arc<Class>) {
    let _when_panicking = WhenPanicking { dispatch: &dispatch, class: &class };
    let mut watch = None;
    let mut leaves = None;
    loop {
        let drained = dispatch.shared.drain.cancelled();
        let step = class.next_step();
        if step != Step::Linger {
            leaves = None;
        }
        let until = match step {
            // However much happens in the queue meanwhile: only a subscriber makes it stay longer.
            Step::Linger => {
                watch = None;
                if !dispatch.lists(&class) {
                    return;
                }
                let leaves = *leaves.get_or_insert_with(|| Instant::now() + LINGER);
                tokio::select! {
                    () = sleep_until(leaves) => if dispatch.forget(&class) { return },
                    () = class.wake.changed() => {}
                    () = drained => break,
                }
                continue;
            }
            Step::Read => {
                read(&dispatch, &class).await;
                if !class.is_idle() {
                    watch = None;
                }
                if dispatch.shared.drain.is_cancelled() {
                    break;
                }
                continue;
            }
            Step::AskNextVisible(before_read) => {
                ask(&dispatch, &class, before_read).await;
                continue;
            }
            Step::Rest => {
                watch = None;
                None
            }
            Step::Wait(until) => {
                if watch.is_none() && class.is_idle() {
                    watch = Some(dispatch.shared.lookout.watch(&class.order.queue));
                }
                until
            }
        };
        let moment = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = class.wake.changed() => {}
            () = moment => {}
            () = drained => break,
        }
    }
    // Those who come later are told the same when they subscribe.
    dispatch.forget_for_ever(&class);
    class.lock().share.fail_all(&Error::draining());
}

/// Waits for a turn and reads for those who want something by then.
async fn read(dispatch: &Dispatch, class: &Class) {
    let drained = dispatch.shared.drain.cancelled();
    let done = tokio::select! {
        turn = dispatch.turn(class, "read") => async { read_in_turn(dispatch, class, turn?).await }.await,
        // Nothing was asked yet, so nothing is under way.
        () = drained => return,
    };
    if let Err(error) = done {
        failed(class, &error);
    }
}

async fn read_in_turn(dispatch: &Dispatch, class: &Class, mut turn: super::Turn) -> Result<()> {
    let Some(ask) = class.begin_read() else {
        return Ok(());
    };
    let mut taken = turn.session.read(&class.order, ask.count, ask.bytes).await?;
    let refused = taken.refused.take();
    let full = refused.is_some() || taken.cut || taken.deliveries.len() >= ask.count;
    let (before_read, in_vain) = (taken.before_read, taken.in_vain);
    let something = !taken.deliveries.is_empty();
    let mut changes = Changes::default();
    for aside in &taken.set_aside {
        changes.set_aside(&class.order.queue, aside);
    }
    hand_over(dispatch, class, taken, full);
    changes.tell(&dispatch.shared.events);
    if let Some(error) = refused {
        wait(class, &error);
        return Ok(());
    }
    if in_vain {
        class.pause(not_all_at_once());
        return Ok(());
    }
    class.found(if full { Found::Full } else { Found::Short { before_read, something } });
    // The turn is here, so the question costs least now.
    if let Step::AskNextVisible(before_read) = class.next_step() {
        ask_in_turn(class, turn.session.as_mut(), before_read).await?;
    }
    Ok(())
}

/// Gives a batch to its subscribers, and back what they do not want any more.
fn hand_over(dispatch: &Dispatch, class: &Class, taken: Taken, full: bool) {
    let (returns, queue) = (&dispatch.shared.returns, &class.order.queue);
    if !taken.deliveries.is_empty() {
        class.wake.at(Instant::now() + class.order.visibility_timeout.span());
    }
    let left = {
        let mut state = class.lock();
        let gone = Error::queue_not_found(queue.as_str());
        state.share.keep_incarnation(taken.queue_created_at, &gone);
        state.share.weigh(&taken.deliveries);
        let pieces = |deliveries| Handover::new(returns, queue, deliveries);
        let left = state.share.divide(taken.deliveries.into(), pieces);
        if !full {
            state.share.tell_nothing();
        }
        left
    };
    returns.give_back(queue, left);
}

async fn ask(dispatch: &Dispatch, class: &Class, before_read: Timestamp) {
    let drained = dispatch.shared.drain.cancelled();
    let done = tokio::select! {
        turn = dispatch.turn(class, "next_visible") => async {
            ask_in_turn(class, turn?.session.as_mut(), before_read).await
        }.await,
        () = drained => return,
    };
    if let Err(error) = done {
        failed(class, &error);
    }
}

async fn ask_in_turn(class: &Class, session: &mut dyn Session, before_read: Timestamp) -> Result<()> {
    let begun = Instant::now();
    let known = class.begin_ask();
    let answer = session.next_visible(&class.order.queue, before_read).await;
    match answer {
        Ok(next_visible) => class.asked(next_visible, begun.elapsed(), known),
        Err(error) => {
            class.ask_failed(before_read, known);
            return Err(error);
        }
    }
    Ok(())
}

/// Streams outlive their database, but not their queue; who asks once hears what happened.
fn failed(class: &Class, error: &Error) {
    match error.may_pass() {
        true => wait(class, error),
        false => class.lock().share.fail_all(error),
    }
}

/// Tells those who ask once what happened, and tries again for the others after a pause.
fn wait(class: &Class, error: &Error) {
    class.lock().share.fail_impatient(error);
    let (queue, cause) = (class.order.queue.as_str(), error::chain(error));
    tracing::debug!(queue, error = cause, "readers wait for the database");
    class.pause(match error.kind() {
        Kind::Overloaded => RETRY_PAUSE,
        _ => not_all_at_once(),
    });
}

/// A pause after which not all come back at the same time.
fn not_all_at_once() -> Duration {
    RETRY_PAUSE.mul_f64(rand::rng().random_range(0.5..1.0))
}

//! Group commit: where more flushes are ready than connections are meant for them, one of them leads, and does the work of
//! others in its own transaction. The disk is written once for all of them.
//!
//! While few are under way, whoever is ready leads at once, alone. So there is no timer here either: a group grows by itself
//! while those before it are at the database.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::domain::{Error, Kind, Result};

/// Groups that take longer do not count as under way: what holds them up must not hold up everybody.
const LATE: Duration = Duration::from_millis(50);

/// How many a leader takes along first. As long as they have brought little, twice as many are the next.
const FIRST_ROUND: usize = 16;

/// The groups of a kind of flushes. `W` is the work that a follower brings its leader.
pub struct Groups<W> {
    most: usize,
    state: Mutex<State<W>>,
}

struct State<W> {
    /// Groups that are under way and not late.
    leading: usize,
    waiting: VecDeque<Member<W>>,
}

/// One that waits for its role.
struct Member<W> {
    since: Instant,
    told: oneshot::Sender<Result<Role<W>>>,
}

/// What a flush does that is ready.
pub enum Role<W> {
    /// It takes a connection, and gathers others.
    Leader(Lead<W>),
    /// It brings its work to a leader who has a connection.
    Follower(Seat<W>),
}

/// The right to lead a group, passed on when dropped.
pub struct Lead<W> {
    groups: Arc<Groups<W>>,
    since: Instant,
    counts: bool,
}

/// A place in a group. A leader waits until it was taken or dropped.
pub struct Seat<W>(mpsc::UnboundedSender<W>);

impl<W> Groups<W> {
    /// So many groups may be under way at a time, at least one.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most: most.max(1),
            state: Mutex::new(State { leading: 0, waiting: VecDeque::new() }),
        })
    }

    /// Waits for a role, first come, first served.
    ///
    /// # Errors
    /// What has kept a leader from its connection.
    pub async fn join(self: &Arc<Self>) -> Result<Role<W>> {
        let role = {
            let mut state = self.lock();
            if state.leading < self.most {
                state.leading += 1;
                drop(state);
                return Ok(Role::Leader(Lead::new(self)));
            }
            let (told, role) = oneshot::channel();
            state.waiting.push_back(Member { since: Instant::now(), told });
            role
        };
        role.await.unwrap_or_else(|_| Err(Error::internal("a group ended without its members")))
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next that waits. If nobody does, a group less is under way.
    fn next(&self) -> Option<Member<W>> {
        let mut state = self.lock();
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.leading -= 1;
        }
        next
    }

    /// The first that wait, so many at most.
    fn first(&self, most: usize) -> Vec<Member<W>> {
        let mut state = self.lock();
        let count = most.min(state.waiting.len());
        state.waiting.drain(..count).collect()
    }
}

impl<W> Lead<W> {
    fn new(groups: &Arc<Groups<W>>) -> Self {
        Self { groups: Arc::clone(groups), since: Instant::now(), counts: true }
    }

    /// Takes along so many of those that wait, until they have brought enough, and gives what they bring.
    pub async fn gather(&self, most: usize, is_enough: impl Fn(&[W]) -> bool) -> Vec<W> {
        let (mut work, mut left, mut round) = (Vec::new(), most, FIRST_ROUND);
        while !is_enough(&work) {
            let members = self.groups.first(round.min(left));
            if members.is_empty() {
                break;
            }
            left -= members.len();
            round *= 2;
            let (seat, mut brought) = mpsc::unbounded_channel();
            for member in members {
                // One that has gone has nothing to bring.
                let _ = member.told.send(Ok(Role::Follower(Seat(seat.clone()))));
            }
            drop(seat);
            while let Some(more) = brought.recv().await {
                work.push(more);
            }
        }
        work
    }

    /// Does something of the group's. If that takes long, another may lead meanwhile.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        match tokio::time::timeout(LATE, work.as_mut()).await {
            Ok(done) => done,
            Err(_) => {
                self.pass_on();
                work.await
            }
        }
    }

    /// Lets another lead, because what is left may take long.
    pub fn pass_on(&mut self) {
        if !std::mem::take(&mut self.counts) {
            return;
        }
        while let Some(next) = self.groups.next() {
            match next.told.send(Ok(Role::Leader(Self::new(&self.groups)))) {
                Ok(()) => return,
                // It has gone: the next one.
                Err(Ok(Role::Leader(mut lead))) => lead.counts = false,
                Err(_) => {}
            }
        }
    }

    /// Tells those that wait that no connection is to be had, for they would hear nothing else, one after the other. Where
    /// others do get connections, these are only those who have waited for as long as this one.
    pub fn refuse_waiting(&self, error: &Error) {
        let refused = {
            let mut state = self.groups.lock();
            let count = match error.kind() {
                Kind::Overloaded => state.waiting.partition_point(|member| member.since <= self.since),
                _ => state.waiting.len(),
            };
            state.waiting.drain(..count).collect::<Vec<_>>()
        };
        for member in refused {
            let _ = member.told.send(Err(error.clone()));
        }
    }
}

impl<W> Drop for Lead<W> {
    fn drop(&mut self) {
        self.pass_on();
    }
}

impl<W> Seat<W> {
    /// Brings work to the leader.
    pub fn bring(self, work: W) {
        // A leader that has gone has dropped it, and whoever waits for it hears of that.
        let _ = self.0.send(work);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::JoinSet;
    use tokio::time::sleep;

    use super::*;

    const FLUSH: Duration = Duration::from_millis(10);

    const ENOUGH: usize = 40;

    /// Takes part with a number; a leader's group takes a while. Gives the numbers of a group that it led.
    async fn take_part(groups: Arc<Groups<usize>>, number: usize, takes: Duration) -> Result<Vec<usize>> {
        match groups.join().await? {
            Role::Follower(seat) => {
                seat.bring(number);
                Ok(Vec::new())
            }
            Role::Leader(mut lead) => {
                let mut all = lead.gather(100, |brought| brought.len() >= ENOUGH).await;
                all.push(number);
                lead.during(sleep(takes)).await;
                Ok(all)
            }
        }
    }

    async fn groups_of(members: &mut JoinSet<Result<Vec<usize>>>) -> Vec<Vec<usize>> {
        let mut led = Vec::new();
        while let Some(member) = members.join_next().await {
            led.push(member.expect("a member").expect("a role"));
        }
        led.retain(|group| !group.is_empty());
        led.sort();
        led
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_lead_alone_and_the_others_go_together() {
        let groups = Groups::new(2);
        let mut members = JoinSet::new();
        for number in 0..20 {
            members.spawn(take_part(Arc::clone(&groups), number, FLUSH));
            tokio::task::yield_now().await;
        }
        let led = groups_of(&mut members).await;
        assert_eq!(led[..2], [[0], [1]]);
        // Both may end before one of the next two has taken the others along.
        assert!(led.len() <= 4, "{led:?}");
        let mut all: Vec<usize> = led.into_iter().flatten().collect();
        all.sort_unstable();
        assert_eq!(all, (0..20).collect::<Vec<_>>());
        let state = groups.lock();
        assert_eq!((state.leading, state.waiting.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_takes_long_lets_another_lead() {
        let groups = Groups::new(1);
        let mut members = JoinSet::new();
        members.spawn(take_part(Arc::clone(&groups), 0, 100 * LATE));
        tokio::task::yield_now().await;
        members.spawn(take_part(Arc::clone(&groups), 1, FLUSH));
        let began = Instant::now();
        let first = members.join_next().await.expect("two").expect("a member").expect("a role");
        assert_eq!((first, began.elapsed() <= LATE + FLUSH * 2), (vec![1], true));
        assert_eq!(groups_of(&mut members).await, [[0]]);
        assert_eq!(groups.lock().leading, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_go_while_they_wait_are_passed_over() {
        let groups = Groups::new(1);
        let mut members = JoinSet::new();
        members.spawn(take_part(Arc::clone(&groups), 0, FLUSH));
        tokio::task::yield_now().await;
        let gone = tokio::spawn(take_part(Arc::clone(&groups), 1, FLUSH));
        tokio::task::yield_now().await;
        members.spawn(take_part(Arc::clone(&groups), 2, FLUSH));
        tokio::task::yield_now().await;
        gone.abort();
        assert!(gone.await.is_err());
        assert_eq!(groups_of(&mut members).await, [[0], [2]]);
        assert_eq!(groups.lock().leading, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_role_that_nobody_takes_any_more_is_passed_on() {
        let groups = Groups::<usize>::new(1);
        let Ok(Role::Leader(lead)) = groups.join().await else { panic!("the first leads") };
        let (mut second, mut third) = (Box::pin(groups.join()), Box::pin(groups.join()));
        for waiting in [&mut second, &mut third] {
            assert!(futures_util::future::poll_immediate(waiting).await.is_none());
        }
        drop(lead);
        // It was told that it leads, and goes before it hears of it.
        drop(second);
        assert!(matches!(third.await, Ok(Role::Leader(_))));
        assert_eq!(groups.lock().leading, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_takes_no_more_along_when_it_has_enough() {
        let groups = Groups::new(1);
        let mut members = JoinSet::new();
        members.spawn(take_part(Arc::clone(&groups), 0, FLUSH));
        tokio::task::yield_now().await;
        for number in 1..=200 {
            members.spawn(take_part(Arc::clone(&groups), number, FLUSH));
        }
        let led = groups_of(&mut members).await;
        // One, and 16 and 32 with the leader itself; then what is left.
        assert_eq!(led.iter().map(Vec::len).max(), Some(49));
        assert_eq!(led.iter().map(Vec::len).sum::<usize>(), 201);
    }

    #[tokio::test(start_paused = true)]
    async fn where_others_get_connections_only_those_are_refused_who_have_waited_as_long() {
        let groups = Groups::<usize>::new(1);
        let Ok(Role::Leader(first)) = groups.join().await else { panic!("the first leads") };
        let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(groups.join())).collect();
        for member in &mut waiting {
            assert!(futures_util::future::poll_immediate(member).await.is_none());
        }
        sleep(FLUSH).await;
        drop(first);
        let Ok(Role::Leader(second)) = waiting.remove(0).await else { panic!("the next leads") };
        sleep(FLUSH).await;
        let mut later = Box::pin(groups.join());
        assert!(futures_util::future::poll_immediate(&mut later).await.is_none());
        second.refuse_waiting(&Error::new(Kind::Overloaded, "full"));
        assert_eq!(waiting.remove(0).await.err().map(|error| error.kind()), Some(Kind::Overloaded));
        drop(second);
        assert!(matches!(later.await, Ok(Role::Leader(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_wait_hear_that_there_is_no_connection() {
        let groups = Groups::new(1);
        let Ok(Role::Leader(lead)) = groups.join().await else { panic!("the first leads") };
        let refused = AtomicUsize::new(0);
        let others = (1..9).map(|number| {
            let member = take_part(Arc::clone(&groups), number, FLUSH);
            async {
                assert_eq!(member.await.expect_err("a refusal").kind(), Kind::DatabaseUnavailable);
                refused.fetch_add(1, Ordering::Relaxed);
            }
        });
        let error = Error::new(Kind::DatabaseUnavailable, "down");
        let refuse = async {
            tokio::task::yield_now().await;
            lead.refuse_waiting(&error);
        };
        tokio::join!(futures_util::future::join_all(others), refuse);
        assert_eq!(refused.into_inner(), 8);
        drop(lead);
        assert_eq!(take_part(groups, 9, FLUSH).await.expect("a role"), [9]);
    }
}

//! Who calls this replica: remembered for a minute, bounded, and without an allocation for a caller that is known.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};
use tokio::time::Instant;

use crate::domain::client::{Caller, Client, ClientRole, REMEMBERED};
use crate::domain::{QueueName, Timestamp};

/// How many clients are remembered at most; those that called last stay.
pub const MOST_CLIENTS: usize = 10_000;

/// Calls of different clients seldom wait for each other.
const SHARDS: usize = 8;

/// Who was seen within this time is told to be there, instead of when it was seen.
pub const FRESH: Duration = Duration::from_secs(10);

/// The clients of one replica.
pub struct Clients {
    shards: [Mutex<HashTable<Arc<Seen>>>; SHARDS],
    most_of_shard: usize,
    /// Who had to make room although others were told of it.
    evicted: Mutex<Vec<Change>>,
    hasher: DefaultHashBuilder,
    began: Instant,
    began_at: Timestamp,
}

/// A client that was seen. Its moments are milliseconds since the registry began.
#[derive(Debug)]
struct Seen {
    name: Box<str>,
    role: ClientRole,
    queue: Box<str>,
    address: Arc<str>,
    since_ms: u64,
    last_seen_ms: AtomicU64,
    streams: AtomicUsize,
    in_flight: AtomicI64,
    /// What others were told last.
    told: Mutex<Option<Told>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    in_flight: i32,
    /// None while it is seen again and again.
    last_seen_ms: Option<u64>,
}

/// A client that others have not been told of as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What it calls itself, or empty.
    pub name: String,
    /// What it does.
    pub role: ClientRole,
    /// The queue's name, or empty.
    pub queue: String,
    /// Where it is.
    pub address: String,
    /// How it is now; none if it is forgotten.
    pub state: Option<State>,
}

/// How a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Messages of its streams.
    pub in_flight: i32,
    /// How long ago it was first seen.
    pub since: Duration,
    /// How long ago it was last seen; none while it is seen again and again.
    pub last_seen: Option<Duration>,
}

/// A stream, or a part of one, of a client; as long as it is there, so is the client.
#[derive(Debug, Default)]
pub struct Presence {
    /// None if too many clients are there to remember this one.
    seen: Option<Arc<Seen>>,
    began: Option<Instant>,
    in_flight: i64,
}

impl Default for Clients {
    fn default() -> Self {
        Self::new(MOST_CLIENTS)
    }
}

impl Clients {
    /// Remembers about so many clients.
    fn new(most: usize) -> Self {
        Self {
            shards: Default::default(),
            most_of_shard: most.div_ceil(SHARDS),
            evicted: Mutex::default(),
            hasher: DefaultHashBuilder::default(),
            began: Instant::now(),
            began_at: Timestamp::now(),
        }
    }

    /// Notes a call for a queue; without one, for topics. What cannot be a queue's name is not noted.
    pub fn called(&self, caller: &Caller, role: ClientRole, queue: &str) {
        if QueueName::is_good(queue) || queue.is_empty() {
            self.find(caller, role, queue);
        }
    }

    /// Notes a stream, for as long as it is there.
    pub fn stream(&self, caller: &Caller, role: ClientRole, queue: &str) -> Presence {
        let seen = self.find(caller, role, queue);
        if let Some(seen) = &seen {
            seen.streams.fetch_add(1, Ordering::Relaxed);
        }
        Presence { seen, began: Some(self.began), in_flight: 0 }
    }

    fn now_ms(&self) -> u64 {
        millis_since(self.began)
    }

    fn find(&self, caller: &Caller, role: ClientRole, queue: &str) -> Option<Arc<Seen>> {
        let (name, address) = (caller.name.as_deref().unwrap_or_default(), &*caller.address);
        let hash = self.hasher.hash_one((name, role, queue, address));
        let now_ms = self.now_ms();
        let mut shard = self.shard(hash);
        if let Some(known) = shard.find(hash, |seen| seen.is(name, role, queue, address)) {
            known.last_seen_ms.store(now_ms, Ordering::Relaxed);
            return Some(Arc::clone(known));
        }
        if shard.len() >= self.most_of_shard {
            self.forget_oldest(&mut shard)?;
        }
        let seen = Arc::new(Seen {
            name: name.into(),
            role,
            queue: queue.into(),
            address: Arc::clone(&caller.address),
            since_ms: now_ms,
            last_seen_ms: AtomicU64::new(now_ms),
            streams: AtomicUsize::new(0),
            in_flight: AtomicI64::new(0),
            told: Mutex::default(),
        });
        shard.insert_unique(hash, Arc::clone(&seen), |seen| self.hash(seen));
        Some(seen)
    }

    /// Makes room, or none if all that are there have streams.
    fn forget_oldest(&self, shard: &mut HashTable<Arc<Seen>>) -> Option<()> {
        let idle = shard.iter().filter(|seen| seen.streams.load(Ordering::Relaxed) == 0);
        let oldest = idle.min_by_key(|seen| seen.last_seen_ms.load(Ordering::Relaxed)).map(Arc::clone)?;
        let entry = shard.find_entry(self.hash(&oldest), |seen| Arc::ptr_eq(seen, &oldest)).ok()?;
        entry.remove();
        if lock(&oldest.told).is_some() {
            lock(&self.evicted).push(oldest.change(None));
        }
        Some(())
    }

    fn hash(&self, seen: &Seen) -> u64 {
        self.hasher.hash_one((&*seen.name, seen.role, &*seen.queue, &*seen.address))
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, HashTable<Arc<Seen>>> {
        // The table itself uses the other bits.
        lock(&self.shards[(hash >> 32) as usize % SHARDS])
    }

    /// The clients of the last 60 s, as this replica lists them.
    pub fn list(&self, replica: &str) -> Vec<Client> {
        let now_ms = self.now_ms();
        let at = |ms: u64| self.began_at.after(Duration::from_millis(ms));
        let mut clients = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            clients.extend(shard.iter().filter(|seen| !seen.is_over(now_ms)).map(|seen| Client {
                name: seen.name.to_string(),
                role: seen.role,
                queue: seen.queue.to_string(),
                address: seen.address.to_string(),
                replica: replica.to_owned(),
                in_flight: seen.in_flight(),
                since: at(seen.since_ms),
                last_seen: at(now_ms - seen.idle_ms(now_ms)),
            }));
        }
        clients
    }

    /// What others have to be told, as much of it as asked for; they count as told. Clients that were not seen for 60 s
    /// are forgotten.
    pub fn changes(&self, most: usize) -> Vec<Change> {
        let now_ms = self.now_ms();
        let mut changes = self.evicted(most);
        for shard in &self.shards {
            lock(shard).retain(|seen| {
                if changes.len() >= most {
                    return true;
                }
                let is_over = seen.is_over(now_ms);
                let mut told = lock(&seen.told);
                let idle_ms = seen.idle_ms(now_ms);
                let is_fresh = u128::from(idle_ms) <= FRESH.as_millis();
                let now = Told {
                    in_flight: seen.in_flight(),
                    last_seen_ms: Some(now_ms - idle_ms).filter(|_| !is_fresh),
                };
                let is_news = if is_over { told.is_some() } else { *told != Some(now) };
                if is_news {
                    *told = Some(now);
                    let state = State {
                        in_flight: now.in_flight,
                        since: Duration::from_millis(now_ms - seen.since_ms),
                        last_seen: now.last_seen_ms.map(|_| Duration::from_millis(idle_ms)),
                    };
                    changes.push(seen.change(Some(state).filter(|_| !is_over)));
                }
                !is_over
            });
        }
        changes
    }

    /// Who was evicted and has not come back since.
    fn evicted(&self, most: usize) -> Vec<Change> {
        let mut evicted = lock(&self.evicted);
        let left = evicted.len().saturating_sub(most);
        let mut gone = evicted.split_off(left);
        drop(evicted);
        gone.retain(|change| {
            let Change { name, role, queue, address, .. } = change;
            let hash = self.hasher.hash_one((&**name, role, &**queue, &**address));
            self.shard(hash).find(hash, |seen| seen.is(name, *role, queue, address)).is_none()
        });
        gone
    }

    /// Everything has to be told anew: what others were told is lost.
    pub fn forget_told(&self) {
        lock(&self.evicted).clear();
        for shard in &self.shards {
            lock(shard).iter().for_each(|seen| *lock(&seen.told) = None);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Seen {
    fn is(&self, name: &str, role: ClientRole, queue: &str, address: &str) -> bool {
        *self.queue == *queue && *self.address == *address && *self.name == *name && self.role == role
    }

    fn in_flight(&self) -> i32 {
        i32::try_from(self.in_flight.load(Ordering::Relaxed)).unwrap_or(i32::MAX).max(0)
    }

    /// How long ago it was seen; a stream is seen all the time.
    fn idle_ms(&self, now_ms: u64) -> u64 {
        match self.streams.load(Ordering::Relaxed) {
            0 => now_ms.saturating_sub(self.last_seen_ms.load(Ordering::Relaxed)),
            _ => 0,
        }
    }

    fn is_over(&self, now_ms: u64) -> bool {
        u128::from(self.idle_ms(now_ms)) >= REMEMBERED.as_millis()
    }

    fn change(&self, state: Option<State>) -> Change {
        Change {
            name: self.name.to_string(),
            role: self.role,
            queue: self.queue.to_string(),
            address: self.address.to_string(),
            state,
        }
    }
}

impl Presence {
    /// Sets how many messages of this stream are under way.
    pub fn set_in_flight(&mut self, in_flight: usize) {
        let in_flight = i64::try_from(in_flight).unwrap_or(i64::MAX);
        if let Some(seen) = self.seen.as_ref().filter(|_| in_flight != self.in_flight) {
            seen.in_flight.fetch_add(in_flight - self.in_flight, Ordering::Relaxed);
            self.in_flight = in_flight;
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.set_in_flight(0);
        if let (Some(seen), Some(began)) = (&self.seen, self.began) {
            seen.last_seen_ms.store(millis_since(began), Ordering::Relaxed);
            seen.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn caller(name: &str) -> Caller {
        Caller { name: Some(name.into()), address: "10.0.0.1:5000".into() }
    }

    fn names(clients: &Clients) -> Vec<String> {
        let mut names: Vec<String> = clients.list("r").into_iter().map(|client| client.name).collect();
        names.sort();
        names
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_is_listed_once_for_each_role_and_queue_and_for_a_minute() {
        let clients = Clients::default();
        for _ in 0..3 {
            clients.called(&caller("a"), ClientRole::Producer, "q");
            clients.called(&caller("a"), ClientRole::Consumer, "q");
            clients.called(&caller("a"), ClientRole::Producer, "");
            clients.called(&caller("a"), ClientRole::Producer, "no;queue");
        }
        assert_eq!(clients.list("r").len(), 3);
        advance(Duration::from_secs(59)).await;
        clients.called(&caller("a"), ClientRole::Producer, "q");
        advance(Duration::from_secs(2)).await;
        let left = clients.list("r");
        assert_eq!(left.len(), 1);
        assert_eq!((left[0].role, left[0].queue.as_str()), (ClientRole::Producer, "q"));
        assert_eq!(left[0].since.after(Duration::from_secs(59)), left[0].last_seen);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_there_until_it_ends_and_counts_its_messages() {
        let clients = Clients::default();
        let mut streams = [(); 2].map(|()| clients.stream(&caller("a"), ClientRole::Consumer, "q"));
        streams[0].set_in_flight(7);
        streams[1].set_in_flight(5);
        streams[1].set_in_flight(3);
        advance(REMEMBERED * 5).await;
        let in_flight = || clients.list("r").iter().map(|client| client.in_flight).collect::<Vec<_>>();
        assert_eq!(in_flight(), [10]);
        let [first, second] = streams;
        drop(first);
        assert_eq!(in_flight(), [3]);
        drop(second);
        advance(REMEMBERED - Duration::from_secs(1)).await;
        assert_eq!(in_flight(), [0]);
        advance(Duration::from_secs(1)).await;
        assert!(in_flight().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_told_while_nothing_changes() {
        let clients = Clients::default();
        let mut stream = clients.stream(&caller("streams"), ClientRole::Consumer, "q");
        clients.called(&caller("calls"), ClientRole::Producer, "q");
        assert_eq!(clients.changes(1).len() + clients.changes(1).len(), 2);
        for _ in 0..20 {
            advance(FRESH / 2).await;
            clients.called(&caller("calls"), ClientRole::Producer, "q");
            assert_eq!(clients.changes(100), []);
        }
        stream.set_in_flight(4);
        let state = clients.changes(100).pop().and_then(|change| change.state).expect("a change");
        assert_eq!((state.in_flight, state.last_seen), (4, None));
        // It falls silent, which is told once, and is forgotten, which is told once.
        advance(FRESH * 2).await;
        let silent = clients.changes(100);
        assert_eq!(silent.len(), 1);
        assert_eq!(silent[0].state.and_then(|state| state.last_seen), Some(FRESH * 2));
        advance(FRESH).await;
        assert_eq!(clients.changes(100), []);
        advance(REMEMBERED).await;
        let gone = clients.changes(100);
        assert_eq!((gone.len(), gone[0].name.as_str(), gone[0].state), (1, "calls", None));
        assert_eq!(clients.changes(100), []);
        clients.forget_told();
        assert_eq!(clients.changes(100).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn when_too_many_come_the_oldest_go_and_streams_stay() {
        let clients = Clients::new(SHARDS * 4);
        let streams = ["s1", "s2"].map(|name| clients.stream(&caller(name), ClientRole::Consumer, "q"));
        for number in 0..1_000 {
            clients.called(&caller(&format!("{number:04}")), ClientRole::Producer, "q");
            advance(Duration::from_millis(1)).await;
        }
        let left = names(&clients);
        assert!(left.len() <= SHARDS * 4, "{} are remembered", left.len());
        assert!(left.contains(&"0999".to_owned()) && !left.contains(&"0000".to_owned()), "{left:?}");
        assert_eq!(clients.changes(10_000).len(), left.len());
        clients.called(&caller("last"), ClientRole::Producer, "q");
        let told = clients.changes(10_000);
        assert_eq!(told.iter().filter(|change| change.state.is_none()).count(), 1, "{told:?}");
        assert!(left.ends_with(&["s1".to_owned(), "s2".to_owned()]), "{left:?}");
        drop(streams);
        // Where all have streams, one more is not remembered, and nothing breaks.
        let crowd: Vec<Presence> = (0..1_000)
            .map(|number| clients.stream(&caller(&format!("c{number}")), ClientRole::Consumer, "q"))
            .collect();
        assert!(names(&clients).len() <= SHARDS * 4);
        drop(crowd);
    }
}

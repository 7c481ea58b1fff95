//! What happens between calls: who waits for a queue, who wakes them, and how much each may hold.

pub mod announcement;
mod changes;
pub mod clients;
pub mod dispatch;
mod events;
mod lateness;
pub mod merge;
mod moves;
mod parked;
mod refusals;
mod streams;
mod wake;
mod window;

pub use changes::Changes;
pub use clients::{Clients, Presence};
pub use dispatch::{Dispatch, Handover, Subscription};
pub use events::{Events, Happening, Interest, QueueEvents};
pub use lateness::Lateness;
pub use parked::{Parked, ParkedCall};
pub use refusals::Refusals;
pub use streams::{OpenStream, StreamKind, Streams};
pub use wake::Wake;
pub use window::{Held, Window};

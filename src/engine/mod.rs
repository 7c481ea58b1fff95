//! What happens between calls: who waits for a queue, who wakes them, and how much each may hold.

mod changes;
mod events;
mod window;

pub use changes::Changes;
pub use events::{Events, QueueEvents, Waiter};
pub use window::{Held, Window};

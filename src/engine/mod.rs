//! What happens between calls: who waits for a queue, who wakes them, and how much each may hold.

mod events;
mod window;

pub use events::{Events, QueueEvents, Waiter};
pub use window::{Held, Window};

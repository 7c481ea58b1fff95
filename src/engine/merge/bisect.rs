//! Finds the items that spoil a merged statement, so that each gets the verdict that it would get alone.

use crate::domain::{Error, Result};

/// How often a statement is tried that collides with others.
const ATTEMPTS: u32 = 3;

/// Whom a failure is to be blamed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// One of the items may have caused it: the others are to be tried without it.
    Item,
    /// It collided with others and may work the next time.
    Collision,
    /// It would have failed for any items.
    All,
}

/// An attempt that failed.
#[derive(Debug)]
pub struct Failure {
    /// Why.
    pub error: Error,
    /// Who is to be blamed.
    pub blame: Blame,
}

/// One statement for many items, all or none.
pub trait Attempt<I> {
    /// What an item gives.
    type Output: Send;

    /// Tries it for some of the items, and gives what each has become, in order.
    fn attempt(&mut self, items: &[I]) -> impl Future<Output = Result<Vec<Self::Output>, Failure>> + Send;
}

/// Applies a statement to items in their order. Where it fails because of some of them, halves are tried by themselves.
pub async fn bisect<I, A>(items: &[I], attempt: &mut A) -> Vec<Result<A::Output>>
where
    I: Sync,
    A: Attempt<I> + Send,
{
    let mut verdicts = Vec::with_capacity(items.len());
    // The part to be tried next is the last.
    let mut parts = vec![items];
    let mut collisions = 0;
    while let Some(part) = parts.pop() {
        match attempt.attempt(part).await {
            Ok(outputs) if outputs.len() == part.len() => verdicts.extend(outputs.into_iter().map(Ok)),
            Ok(_) => {
                let miscounted = Error::internal("a merged statement's results do not match its items");
                verdicts.extend(part.iter().map(|_| Err(miscounted.clone())));
            }
            Err(failure) => {
                let again = failure.blame == Blame::Collision && collisions + 1 < ATTEMPTS;
                if again {
                    collisions += 1;
                    parts.push(part);
                    continue;
                }
                if failure.blame == Blame::Item && part.len() > 1 {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.push(second);
                    parts.push(first);
                } else {
                    verdicts.extend(part.iter().map(|_| Err(failure.error.clone())));
                }
            }
        }
        collisions = 0;
    }
    verdicts
}

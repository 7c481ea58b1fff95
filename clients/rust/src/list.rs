//! Lists that come in pages.

use std::collections::VecDeque;
use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _, try_unfold};

use crate::call::{Call, Rpc};
use crate::{Client, Error};

/// A request for one page of a list. Implemented for each by the build.
pub trait Paged: Rpc {
    /// Makes the request one for the page that the token names.
    fn set_page_token(&mut self, token: String);
    /// The token of the page after this one, or nothing after the last one.
    fn next_page_token(reply: &Self::Reply) -> &str;
}

/// A list. Await it to have all of it, or take its [`stream`](List::stream), which asks for a page when it is needed.
#[must_use = "a list asks for its pages when it is awaited, or streamed"]
pub struct List<Q: Paged, T>(Call<Q, Vec<T>>);

impl<Q: Paged, T: Send + 'static> List<Q, T> {
    pub(crate) fn new(
        client: &Client,
        request: Result<Q, Error>,
        answer: fn(&Client, Q, Q::Reply) -> Vec<T>,
    ) -> Self {
        Self(Call::new(client, request, answer))
    }

    /// The items, page by page.
    pub fn stream(self) -> BoxStream<'static, Result<T, Error>> {
        let Call { client, request, timeout, answer, .. } = self.0;
        let pages = try_unfold(request.ok(), move |request| {
            let client = client.clone();
            async move {
                let Some(request) = request else { return Ok::<_, Error>(None) };
                let reply = client.unary(&request, timeout).await?;
                let token = Q::next_page_token(&reply).to_owned();
                let mut next = request.clone();
                next.set_page_token(token.clone());
                let items: VecDeque<T> = answer(&client, request, reply).into();
                Ok(Some((items, (!token.is_empty()).then_some(next))))
            }
        });
        pages.map_ok(|items| futures_util::stream::iter(items).map(Ok)).try_flatten().boxed()
    }
}

impl<Q: Paged, T> List<Q, T> {
    pub(crate) fn set(self, change: impl FnOnce(&mut Q)) -> Self {
        Self(self.0.set(change))
    }

    /// The request as it will be sent, for what has no method here.
    pub fn request_mut(&mut self) -> Option<&mut Q> {
        self.0.request_mut()
    }

    /// How long each page may take, in place of the client's default.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self(self.0.timeout(timeout))
    }
}

impl<Q: Paged, T: Send + 'static> IntoFuture for List<Q, T> {
    type Output = Result<Vec<T>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.stream().try_collect())
    }
}

impl<Q: Paged, T> fmt::Debug for List<Q, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("List").field("path", &Q::PATH).finish_non_exhaustive()
    }
}

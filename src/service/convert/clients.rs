//! Clients on the wire.

use super::message::each;
use super::queues::optional_queue;
use super::time::timestamp;
use super::{Fields, FromRequest};
use crate::domain::client::parse_name;
use crate::domain::page::{Page, Paged};
use crate::domain::{Client, ClientRole};
use crate::proto::v1;
use crate::queue::{self, Rules};

impl FromRequest<v1::ListClientsRequest> for queue::ListClients {
    fn queue(request: &v1::ListClientsRequest) -> Option<&str> {
        Some(request.queue.as_str()).filter(|queue| !queue.is_empty())
    }

    fn parse(request: v1::ListClientsRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let v1::ListClientsRequest { page_size, page_token, queue, prefix } = request;
        let page = Page::parse("clients", &[&queue, &prefix], page_size, &page_token);
        let page = fields.take_all(page);
        let queue = optional_queue(fields, queue);
        fields.take("prefix", parse_name(prefix.as_bytes()).map(drop))?;
        let queue = queue?.map_or_else(String::new, |queue| queue.to_string());
        Some(Self { prefix, queue, page: page? })
    }
}

impl From<Client> for v1::Client {
    fn from(client: Client) -> Self {
        let role = match client.role {
            ClientRole::Consumer => v1::ClientRole::Consumer,
            ClientRole::Producer => v1::ClientRole::Producer,
        };
        Self {
            name: client.name,
            role: role.into(),
            queue: client.queue,
            address: client.address,
            replica: client.replica,
            in_flight: client.in_flight,
            since: Some(timestamp(client.since)),
            last_seen: Some(timestamp(client.last_seen)),
        }
    }
}

impl From<Paged<Client>> for v1::ListClientsResponse {
    fn from(paged: Paged<Client>) -> Self {
        Self { clients: each(paged.items), next_page_token: paged.next_page_token }
    }
}

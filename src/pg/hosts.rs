//! The servers behind a database URL, each with a configuration of its own.
//!
//! `tokio_postgres` tries several hosts by itself and takes the first that connects; but which one is the true primary
//! is known only after a look at it, so the attempts are made one by one.

use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use rand::seq::SliceRandom;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts, TargetSessionAttrs};

/// One server to try.
pub(super) struct Candidate {
    /// How to connect to it, and to nothing else.
    pub(super) config: Config,
    place: Place,
}

/// The host's number in the URL, and which of its addresses.
type Place = (usize, Option<IpAddr>);

/// All servers of a URL.
pub(super) struct Hosts {
    config: Config,
    /// The one that was the primary when we last connected: the first to try, so that dead ones cost no time.
    good: Mutex<Option<Place>>,
}

impl Hosts {
    pub(super) fn new(config: Config) -> Self {
        Self { config, good: Mutex::new(None) }
    }

    /// The servers in the order in which to try them, names resolved to all their addresses.
    ///
    /// # Errors
    /// A name without an address, if no other host has one.
    pub(super) async fn candidates(&self) -> io::Result<Vec<Candidate>> {
        let mut candidates = Vec::new();
        let mut unresolved = None;
        let (hosts, addresses) = (self.config.get_hosts(), self.config.get_hostaddrs());
        for index in 0..hosts.len().max(addresses.len()) {
            match (hosts.get(index), addresses.get(index)) {
                (host, Some(&address)) => candidates.push(self.candidate(index, host, Some(address))),
                (Some(host @ Host::Tcp(name)), None) => match self.resolve(name, index).await {
                    Ok(addresses) => {
                        let found = addresses.into_iter();
                        candidates
                            .extend(found.map(|address| self.candidate(index, Some(host), Some(address))));
                    }
                    Err(error) => unresolved = Some(error),
                },
                (host, None) => candidates.push(self.candidate(index, host, None)),
            }
        }
        if let (true, Some(error)) = (candidates.is_empty(), unresolved) {
            return Err(error);
        }
        if self.config.get_load_balance_hosts() == LoadBalanceHosts::Random {
            candidates.shuffle(&mut rand::rng());
        }
        let good = *self.good.lock().unwrap_or_else(PoisonError::into_inner);
        candidates.sort_by_key(|candidate| Some(candidate.place) != good);
        Ok(candidates)
    }

    /// Remembers where the primary is.
    pub(super) fn found(&self, candidate: &Candidate) {
        *self.good.lock().unwrap_or_else(PoisonError::into_inner) = Some(candidate.place);
    }

    async fn resolve(&self, name: &str, index: usize) -> io::Result<Vec<IpAddr>> {
        let mut addresses = Vec::new();
        for address in tokio::net::lookup_host((name, self.port(index))).await? {
            if !addresses.contains(&address.ip()) {
                addresses.push(address.ip());
            }
        }
        Ok(addresses)
    }

    fn port(&self, index: usize) -> u16 {
        let ports = self.config.get_ports();
        ports.get(index).or(ports.first()).copied().unwrap_or(5432)
    }

    fn candidate(&self, index: usize, host: Option<&Host>, address: Option<IpAddr>) -> Candidate {
        let mut config = without_hosts(&self.config);
        config.port(self.port(index));
        match host {
            Some(Host::Tcp(name)) => {
                config.host(name);
            }
            #[cfg(unix)]
            Some(Host::Unix(directory)) => {
                config.host_path(directory);
            }
            None => {}
        }
        if let Some(address) = address {
            config.hostaddr(address);
        }
        Candidate { config, place: (index, address) }
    }
}

/// Everything of a configuration but its hosts and ports, which can only be added to. Whether the server takes writes is
/// asked by ourselves, which saves a round trip.
fn without_hosts(config: &Config) -> Config {
    let mut bare = Config::new();
    bare.target_session_attrs(TargetSessionAttrs::Any)
        .ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .channel_binding(config.get_channel_binding())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle());
    if let Some(user) = config.get_user() {
        bare.user(user);
    }
    if let Some(password) = config.get_password() {
        bare.password(password);
    }
    if let Some(database) = config.get_dbname() {
        bare.dbname(database);
    }
    if let Some(options) = config.get_options() {
        bare.options(options);
    }
    if let Some(name) = config.get_application_name() {
        bare.application_name(name);
    }
    if let Some(timeout) = config.get_connect_timeout() {
        bare.connect_timeout(*timeout);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        bare.tcp_user_timeout(*timeout);
    }
    if let Some(interval) = config.get_keepalives_interval() {
        bare.keepalives_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        bare.keepalives_retries(retries);
    }
    bare
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str) -> Hosts {
        Hosts::new(text.parse().expect("a configuration"))
    }

    async fn places(hosts: &Hosts) -> Vec<Place> {
        hosts.candidates().await.expect("candidates").iter().map(|candidate| candidate.place).collect()
    }

    #[tokio::test]
    async fn each_candidate_is_one_server_with_its_port_and_everything_else() {
        let hosts = hosts(
            "host=127.0.0.1,/run/postgres port=6001,6002 user=u password=p dbname=d application_name=a \
             connect_timeout=3 sslmode=require channel_binding=require options=-cgeqo=off keepalives_idle=7 \
             target_session_attrs=read-write",
        );
        let candidates = hosts.candidates().await.expect("candidates");
        let [first, second] = candidates.as_slice() else { panic!("{} candidates", candidates.len()) };

        let expected = "host=127.0.0.1 hostaddr=127.0.0.1 port=6001 user=u password=p dbname=d application_name=a \
             connect_timeout=3 sslmode=require channel_binding=require options=-cgeqo=off keepalives_idle=7";
        assert_eq!(first.config, expected.parse().expect("a configuration"));
        assert_eq!(second.config.get_hosts(), [Host::Unix("/run/postgres".into())]);
        assert_eq!(second.config.get_ports(), [6002]);
        assert!(second.config.get_hostaddrs().is_empty());
    }

    #[tokio::test]
    async fn the_last_primary_is_tried_first() {
        let hosts = hosts("hostaddr=10.0.0.1,10.0.0.2,10.0.0.3");
        let candidates = hosts.candidates().await.expect("candidates");
        hosts.found(&candidates[1]);
        let order: Vec<usize> = places(&hosts).await.iter().map(|(index, _)| *index).collect();
        assert_eq!(order, [1, 0, 2]);
    }

    #[tokio::test]
    async fn a_name_that_is_not_known_does_not_keep_from_the_other_hosts() {
        let both = hosts("host=nowhere.invalid,127.0.0.1");
        assert_eq!(places(&both).await, [(1, Some([127, 0, 0, 1].into()))]);
        assert!(hosts("host=nowhere.invalid").candidates().await.is_err());
    }
}

//! One connection, to one endpoint at a time, and what its errors mean.
//!
//! The client spreads requests over all endpoints and retries none, so one dead member of three fails some of them for
//! ever. Here all go to one endpoint, chosen at random at first; a failure that another connection could mend drops it,
//! and the next call connects to the next endpoint, with TLS files and password taken anew. Changed TLS files are taken up while
//! the connection lives: a certificate that etcd does not take is so told of while the old one still serves.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, GetOptions};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::failure::{Access, Failure, Kind, away, failure, is_auth_disabled};
use super::reason::{self, Caller, Cause, Look};
use super::{EtcdOptions, probe, tls};
use crate::process;
use crate::store::Error;

/// The longest that one request may take, connecting included.
pub(super) const CALL: Duration = Duration::from_secs(5);
/// The longest that connecting may take.
const CONNECT: Duration = Duration::from_secs(3);
/// HTTP/2 pings while requests or watches are open: a hung server is noticed within the sum. etcd closes connections
/// that ping more often than every 5 s.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(5);
/// How often a call that may be repeated is tried, within [`CALL`], before its caller hears of a failure.
const TRIES: u32 = 5;
/// How long what a look at an endpoint has found is taken for true.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Between those tries, once each endpoint has had its turn.
const PAUSE: Duration = Duration::from_millis(20);

/// The endpoints, and the one that we are connected to.
pub(super) struct Connection {
    options: EtcdOptions,
    state: Mutex<State>,
    /// What the last look at an endpoint found, and when that was.
    looked: Mutex<Option<(usize, Instant, Look)>>,
}

#[derive(Default)]
struct State {
    client: Option<Client>,
    /// The endpoint in use, modulo their number.
    endpoint: usize,
    /// Counts clients: a failure of one that was dropped already drops no other.
    generation: u64,
    /// The TLS files that the client was made with.
    files: tls::Stamp,
}

/// A client, and which one it is.
pub(super) struct Connected {
    pub(super) client: Client,
    pub(super) generation: u64,
    pub(super) endpoint: usize,
}

impl Connection {
    pub(super) fn new(mut options: EtcdOptions) -> Result<Self, Error> {
        options.endpoints = endpoints(&options)?;
        if let Some(files) = &options.tls {
            tls::options(files)?;
        } else if options.endpoints[0].starts_with("https://") {
            options.tls = Some(super::Tls::default());
        }
        let state = State { endpoint: rand::random_range(0..options.endpoints.len()), ..State::default() };
        Ok(Self { options, state: Mutex::new(state), looked: Mutex::new(None) })
    }

    /// A call that may be done twice: tried at once on the next endpoint when one is away.
    pub(super) async fn retried<T, F>(&self, access: Access<'_>, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let start = Instant::now();
        let endpoints = self.options.endpoints.len() as u32;
        let mut tries = 1;
        loop {
            match self.tried(access, &call).await {
                // Each endpoint has its turn; more than that only where failing takes no time.
                Err(failure)
                    if failure.kind == Kind::Away
                        && (tries < endpoints || (tries < TRIES && start.elapsed() < CALL)) =>
                {
                    if tries >= endpoints {
                        sleep(PAUSE).await;
                    }
                    tries += 1;
                }
                Err(failure) => return Err(self.explained(failure).await),
                Ok(answer) => return Ok(answer),
            }
        }
    }

    /// A call that is done once.
    pub(super) async fn once<T, F>(&self, access: Access<'_>, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        match self.tried(access, call).await {
            Ok(answer) => Ok(answer),
            Err(failure) => Err(self.explained(failure).await),
        }
    }

    /// The same with the error as it comes.
    async fn tried<T, F>(&self, access: Access<'_>, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let connected = self.connected(access).await?;
        let result = match timeout(CALL, call(connected.client)).await {
            Ok(result) => result.map_err(|error| failure(access, &error)),
            Err(_) => Err(away(access, format!("no answer in {} s", CALL.as_secs()))),
        };
        if let Err(failure) = &result {
            self.failed(connected.generation, failure.kind).await;
        }
        result.map_err(|failure| failure.at(connected.endpoint))
    }

    /// A failure in an operator's words. One whose cause is unclear costs another look at the endpoint, at most once in
    /// [`LOOK_AGAIN`].
    pub(super) async fn explained(&self, mut failure: Failure) -> Failure {
        let Some(endpoint) = failure.endpoint.take() else { return failure };
        let (files, name) = (self.options.tls.as_ref(), self.name(endpoint));
        let caller = Caller {
            endpoint: name,
            has_ca: files.is_some_and(|files| files.ca_file.is_some()),
            has_certificate: files.is_some_and(|files| files.cert_file.is_some()),
            fault: files.and_then(tls::fault),
            has_user: self.options.username.is_some(),
        };
        let said = &failure.error.reason;
        let cause = reason::cause(said, &caller);
        let look = if cause == Cause::Unclear { Some(self.look(endpoint).await) } else { None };
        failure.error.reason = reason::explained(said, cause, look.as_ref(), &caller);
        failure
    }

    async fn look(&self, endpoint: usize) -> Look {
        let mut looked = self.looked.lock().await;
        if let Some((of, at, look)) = &*looked
            && *of == endpoint
            && at.elapsed() < LOOK_AGAIN
        {
            return look.clone();
        }
        let look = probe::look(self.name(endpoint), self.options.tls.as_ref()).await;
        *looked = Some((endpoint, Instant::now(), look.clone()));
        look
    }

    fn name(&self, endpoint: usize) -> &str {
        &self.options.endpoints[endpoint % self.options.endpoints.len()]
    }

    /// The client in use, connecting if there is none.
    pub(super) async fn connected(&self, access: Access<'_>) -> Result<Connected, Failure> {
        let mut state = self.state.lock().await;
        self.renew(&mut state, access).await;
        if state.client.is_none() {
            let files = self.files();
            match self.open(state.endpoint, access).await {
                Ok(client) => (state.client, state.files) = (Some(client), files),
                Err(failure) => {
                    let failure = failure.at(state.endpoint);
                    state.endpoint = state.endpoint.wrapping_add(1);
                    return Err(failure);
                }
            }
        }
        match &state.client {
            Some(client) => {
                let (client, generation, endpoint) = (client.clone(), state.generation, state.endpoint);
                Ok(Connected { client, generation, endpoint })
            }
            None => Err(away(access, "not connected".to_owned())),
        }
    }

    /// Takes up changed TLS files between calls, which may be hours apart.
    pub(super) async fn look_at_files(&self) {
        let access = Access { verb: "connect to", key: "etcd", permission: "any" };
        self.renew(&mut *self.state.lock().await, access).await;
    }

    /// Whether there are files to look at.
    pub(super) fn has_files(&self) -> bool {
        self.files() != tls::Stamp::default()
    }

    fn files(&self) -> tls::Stamp {
        self.options.tls.as_ref().map(tls::Stamp::of).unwrap_or_default()
    }

    /// Where the TLS files have changed, replaces the client by one that has them and works. What runs on the old one
    /// goes on.
    async fn renew(&self, state: &mut State, access: Access<'_>) {
        let files = self.files();
        if state.client.is_none() || files == state.files {
            return;
        }
        let new = match self.open(state.endpoint, access).await {
            Ok(client) => self.try_out(client, access).await,
            Err(failure) => Err(failure),
        };
        let new = match new {
            Ok(client) => Ok(client),
            Err(failure) => Err(self.explained(failure.at(state.endpoint)).await),
        };
        state.files = files;
        match new {
            Ok(client) => {
                state.client = Some(client);
                state.generation += 1;
                tracing::info!("the TLS files for etcd have changed: connected with the new ones");
            }
            Err(Failure { error, .. }) => tracing::warn!(
                %error,
                "the TLS files for etcd have changed, and connecting with the new ones fails: the connection made with the old ones stays in use"
            ),
        }
    }

    /// A client that has had an answer: connecting alone says nothing, and what etcd thinks of our certificate comes later.
    async fn try_out(&self, client: Client, access: Access<'_>) -> Result<Client, Failure> {
        let options = GetOptions::new().with_count_only();
        match timeout(CALL, client.kv_client().get(self.options.prefix.as_str(), Some(options))).await {
            Ok(Ok(_)) => Ok(client),
            Ok(Err(error)) => {
                let failure = failure(access, &error);
                if failure.kind == Kind::Away { Err(failure) } else { Ok(client) }
            }
            Err(_) => Err(away(access, format!("no answer in {} s", CALL.as_secs()))),
        }
    }

    /// A call through this client failed: what could be the connection's fault ends it.
    pub(super) async fn failed(&self, generation: u64, kind: Kind) {
        // With a password, a refusal may be for a token that etcd has forgotten.
        let refused = matches!(kind, Kind::Refused | Kind::Denied);
        let drop = kind == Kind::Away || (refused && self.options.username.is_some());
        let mut state = self.state.lock().await;
        if drop && state.generation == generation && state.client.take().is_some() {
            state.generation += 1;
            state.endpoint = state.endpoint.wrapping_add(1);
        }
    }

    async fn open(&self, endpoint: usize, access: Access<'_>) -> Result<Client, Failure> {
        let endpoint = &self.options.endpoints[endpoint % self.options.endpoints.len()];
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(PING_EVERY, PING_ANSWER)
            .with_keep_alive_while_idle(false)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(files) = &self.options.tls {
            let files = tls::options(files).map_err(|error| Failure::new(Kind::Refused, error))?;
            options = options.with_tls(files);
        }
        if probe::has_name(endpoint) {
            let threadless = |error| away(access, format!("no thread to look up the name in {endpoint}: {error}"));
            process::start_look_ups().map_err(threadless)?;
        }
        let password = self.options.password.as_deref().unwrap_or_default();
        let user = self.options.username.as_deref().map(|user| options.clone().with_user(user, password));
        let connect = async {
            match user {
                Some(user) => match Client::connect([endpoint], Some(user)).await {
                    // Nobody has to log in, so nobody can: as Go's client does, go on without.
                    Err(error) if is_auth_disabled(&error) => Client::connect([endpoint], Some(options)).await,
                    result => result,
                },
                None => Client::connect([endpoint], Some(options)).await,
            }
        };
        match timeout(CALL, connect).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => Err(failure(access, &error)),
            Err(_) => Err(away(access, format!("{endpoint} does not answer"))),
        }
    }
}

fn endpoints(options: &EtcdOptions) -> Result<Vec<String>, Error> {
    let refused = |reason: &str| {
        let step = format!("--etcd-endpoints {}", options.endpoints.join(","));
        Error { step, reason: reason.to_owned(), transient: false }
    };
    let given = options.endpoints.iter().map(|endpoint| endpoint.trim().trim_end_matches('/'));
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let full = |endpoint: &str| match endpoint.split_once("://") {
        Some(_) => endpoint.to_owned(),
        None => format!("{scheme}://{endpoint}"),
    };
    let endpoints: Vec<String> = given.filter(|endpoint| !endpoint.is_empty()).map(full).collect();
    let with = |scheme: &str| endpoints.iter().filter(|endpoint| endpoint.starts_with(scheme)).count();
    let (http, https) = (with("http://"), with("https://"));
    if endpoints.is_empty() {
        Err(refused("there is none"))
    } else if http + https < endpoints.len() {
        Err(refused("expected http://host:port or https://host:port"))
    } else if http > 0 && https > 0 {
        Err(refused("http and https can't be mixed"))
    } else if http > 0 && options.tls.is_some() {
        Err(refused("TLS files are given, so the endpoints must be https"))
    } else {
        Ok(endpoints)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(endpoints: &[&str], tls: bool) -> Result<Vec<String>, String> {
        let options = EtcdOptions {
            endpoints: endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(),
            tls: tls.then(super::super::Tls::default),
            ..EtcdOptions::default()
        };
        super::endpoints(&options).map_err(|error| error.to_string())
    }

    #[test]
    fn endpoints_are_all_of_one_kind() {
        assert_eq!(given(&["http://a:1/", " b:2"], false).unwrap(), ["http://a:1", "http://b:2"]);
        assert_eq!(given(&["a:1", "https://b:2"], true).unwrap(), ["https://a:1", "https://b:2"]);
        let cases: [(&[&str], bool, &str); 4] = [
            (&[], false, "--etcd-endpoints : there is none"),
            (
                &["http://a:1", "https://b:2"],
                false,
                "--etcd-endpoints http://a:1,https://b:2: http and https can't be mixed",
            ),
            (&["http://a:1"], true, "--etcd-endpoints http://a:1: TLS files are given, so the endpoints must be https"),
            (&["unix://a"], false, "--etcd-endpoints unix://a: expected http://host:port or https://host:port"),
        ];
        for (endpoints, tls, expected) in cases {
            assert_eq!(given(endpoints, tls).unwrap_err(), expected);
        }
    }
}

//! Why etcd can't be reached or says no, in an operator's words. Pure.
//!
//! The words of etcd's client, of HTTP/2, of TLS and of etcd itself stand behind them in parentheses: they are what one
//! searches for. The texts are those of etcd 3.4 and 3.5, tonic 0.14, h2 0.4 and rustls 0.23; a text that is not known
//! here is shown as it is.

/// Who asked, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller<'a> {
    /// The endpoint, as in `https://10.0.0.5:2379`.
    pub(super) endpoint: &'a str,
    /// `--etcd-cafile` is given.
    pub(super) has_ca: bool,
    /// `--etcd-certfile` is given.
    pub(super) has_certificate: bool,
    /// What is wrong with that certificate, where we can tell.
    pub(super) fault: Option<&'static str>,
    /// `--etcd-username` is given.
    pub(super) has_user: bool,
}

/// What the text of an error tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// This, in words.
    Known(String),
    /// The connection ended, or what came was no HTTP/2: that has many causes, and only another look tells.
    Unclear,
    /// Not one of the texts that are known here.
    Other,
}

/// A text that holds the first is explained by the second, in which `{}` stands for the endpoint. The first that fits
/// counts.
type Words = [(&'static str, &'static str)];

/// What the network and the resolver say.
const NETWORK: &Words = &[
    ("Connection refused", "nothing listens at {}"),
    ("dns error", "the resolver does not know the name in {}"),
    ("failed to lookup address", "the resolver does not know the name in {}"),
    ("Network is unreachable", "no route leads to {}"),
    ("No route to host", "no route leads to {}, or its host is not up"),
    ("tcp connect error: Permission denied", "a local firewall forbids connections to {}"),
    ("tcp connect error: Operation not permitted", "a local firewall forbids connections to {}"),
    (
        "tcp connect error: deadline has elapsed",
        "{} takes no connection: its host is away, or a firewall drops packets",
    ),
    ("Connection timed out", "{} no longer answers: its host is away, or a firewall drops packets"),
    ("keep-alive timed out", "{} stopped answering: it hangs, its host is away, or a firewall drops packets"),
    ("KeepAliveTimedOut", "{} stopped answering: it hangs, its host is away, or a firewall drops packets"),
    ("no answer", SILENT),
];

/// Connections are made, and nothing comes.
const SILENT: &str = "{} accepts connections and does not answer: it hangs, or something between drops packets";

/// Why our side does not trust the server.
const TRUST: &Words = &[
    ("not valid for name", "the server at {} is not trusted: its certificate is for another name"),
    ("Expired", "the server at {} is not trusted: its certificate has expired, or this host's clock is wrong"),
    (
        "certificate expired",
        "the server at {} is not trusted: its certificate has expired, or this host's clock is wrong",
    ),
    ("NotValidYet", "the server at {} is not trusted: its certificate is not valid yet, or this host's clock is wrong"),
    (
        "not valid yet",
        "the server at {} is not trusted: its certificate is not valid yet, or this host's clock is wrong",
    ),
    ("Revoked", "the server at {} is not trusted: its certificate is revoked"),
    ("CaUsedAsEndEntity", "the server at {} is not trusted: its certificate is that of an authority"),
    ("Purpose", "the server at {} is not trusted: its certificate is not for a server"),
];

/// Alerts of TLS by which a server refuses a certificate that it was given.
const REFUSED: &Words = &[
    (
        "UnknownCA",
        "etcd at {} refuses the certificate of --etcd-certfile: the authority that signed it is not in etcd's --trusted-ca-file",
    ),
    (
        "CertificateExpired",
        "etcd at {} refuses the certificate of --etcd-certfile: it has expired, or a clock is wrong",
    ),
    ("CertificateRevoked", "etcd at {} refuses the certificate of --etcd-certfile: it is revoked"),
];

/// What may be wrong with a certificate that is refused: Go's TLS says no more.
const SOME_FAULT: &str = "it has expired, is not for a client, or the authority that signed it is not in etcd's \
    --trusted-ca-file";

/// Nothing was given to a server that asked.
const WANTED: &str =
    "etcd at {} asks for a client certificate and is given none: name one with --etcd-certfile and --etcd-keyfile";

/// What etcd says itself, as gRPC carries it.
const ETCD: &Words = &[
    ("no leader", "etcd has no leader: a majority of its members is not up, or they don't reach each other"),
    ("leader changed", "etcd's members elect a new leader"),
    ("unhealthy cluster", "a majority of etcd's members is not healthy"),
    (
        "database space exceeded",
        "etcd's space quota is used up (alarm NOSPACE): compact and defragment it, then run etcdctl alarm disarm",
    ),
    ("corrupt cluster", "etcd found that its members' data differ (alarm CORRUPT)"),
    ("too many requests", "etcd is overloaded"),
    ("request timed out", "etcd can't commit in time: its disk is slow, it is overloaded, or a member is away"),
    ("server stopped", "etcd at {} is stopping"),
    ("request is too large", "the request is larger than etcd takes (--max-request-bytes)"),
    ("message length too large", "etcd's answer is larger than 4 MiB"),
    ("rpc not supported for learner", "the member at {} is a learner, which serves nothing: name a voting member"),
    ("invalid user ID or password", "etcd does not take --etcd-username with --etcd-password"),
    ("invalid auth token", "etcd has forgotten our login, which is made again"),
    ("revision of auth store", "etcd's users or roles have changed, and the login is made again"),
    ("unknown service", "what listens at {} speaks gRPC and is no etcd v3"),
    ("unknown method", "what listens at {} speaks gRPC and is no etcd v3"),
    (
        "grpc-status header missing",
        "what listens at {} answers HTTP, and not as etcd v3 does: is it a proxy, or etcd's port for metrics?",
    ),
    (
        "invalid compression flag",
        "what listens at {} answers HTTP, and not as etcd v3 does: is it a proxy, or etcd's port for metrics?",
    ),
];

/// The connection ended somehow.
const CUT: [&str; 12] = [
    "broken pipe",
    "Broken pipe",
    "reset by peer",
    "connection closed",
    "connection reset",
    "error reading a body",
    "h2 protocol error",
    "http2 error",
    "unexpected end of file",
    "handshake eof",
    "UnexpectedEof",
    "operation was canceled",
];

/// What an error's text means.
pub(super) fn cause(said: &str, caller: &Caller<'_>) -> Cause {
    let known = |words: &str| Cause::Known(fill(words, caller));
    if let Some(alert) = said.split("received fatal alert: ").nth(1) {
        return Cause::Known(of_alert(alert, caller));
    }
    if said.contains("invalid peer certificate") {
        return Cause::Known(of_trust(said, caller));
    }
    if said.contains("user name is empty") {
        return known(match caller.has_user {
            true => "etcd does not see who asks, although --etcd-username is given",
            false => "etcd asks who we are: give --etcd-username and --etcd-password",
        });
    }
    if said.contains("corrupt message") || said.contains("InvalidContentType") {
        return Cause::Unclear;
    }
    if let Some((_, words)) = NETWORK.iter().chain(ETCD).find(|(text, _)| said.contains(text)) {
        return known(words);
    }
    if CUT.iter().any(|text| said.contains(text)) { Cause::Unclear } else { Cause::Other }
}

/// Why the server ended the handshake.
fn of_alert(alert: &str, caller: &Caller<'_>) -> String {
    let words = match alert {
        _ if ["ProtocolVersion", "InsufficientSecurity", "InappropriateFallback"].iter().any(|a| alert.contains(a)) => {
            "etcd at {} and we have no TLS version or cipher in common"
        }
        _ if alert.contains("UnrecognisedName") => "the server at {} has no certificate for that name",
        _ if alert.contains("NoApplicationProtocol") => "the server at {} does not speak HTTP/2: it is no etcd",
        _ if alert.contains("Internal") => "the server at {} failed",
        _ if !caller.has_certificate && alert.contains("HandshakeFailure") => {
            "etcd at {} asks for a client certificate, which --etcd-certfile and --etcd-keyfile name, or has no cipher in common with us"
        }
        _ if !caller.has_certificate => WANTED,
        _ => match REFUSED.iter().find(|(text, _)| alert.contains(text)) {
            Some((_, words)) => words,
            None => return refused(caller),
        },
    };
    fill(words, caller)
}

/// Why the server does not take our certificate, where it does not say so.
fn refused(caller: &Caller<'_>) -> String {
    let fault = caller.fault.unwrap_or(SOME_FAULT);
    format!("etcd at {} refuses the certificate of --etcd-certfile: {fault}", caller.endpoint)
}

/// Why we don't trust the server.
fn of_trust(said: &str, caller: &Caller<'_>) -> String {
    let unknown = match caller.has_ca {
        true => "the server at {} is not trusted: no authority in --etcd-cafile signed its certificate",
        false => {
            "the server at {} is not trusted: no authority that this system knows signed its certificate: name its authority with --etcd-cafile"
        }
    };
    let words = TRUST.iter().find(|(text, _)| said.contains(text)).map_or(unknown, |(_, words)| words);
    fill(words, caller)
}

/// What another look at the endpoint has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    /// This, in words, with `{}` for the endpoint.
    Found(String),
    /// The server asks for a client certificate, and ends the connection where it is given none.
    CertificateWanted,
    /// The server has asked for our certificate and ended the connection after it.
    CertificateRefused,
    /// The server asks for nothing and ends the handshake.
    NoHandshake,
    /// The server speaks TLS, which the endpoint does not say.
    SpeaksTls,
    /// It failed by this error, whose text tells more than the first one's.
    Failed(String),
    /// Connections are made, and nothing comes.
    Silent,
    /// What is there answers.
    Answers,
    /// It tells nothing.
    Nothing,
}

/// The words for an error with its own text behind them. `look` is what another look at the endpoint found, where the
/// cause was unclear.
pub(super) fn explained(said: &str, cause: Cause, look: Option<&Look>, caller: &Caller<'_>) -> String {
    let words = match (cause, look) {
        (Cause::Known(words), _) => words,
        (Cause::Other, _) => return said.to_owned(),
        (Cause::Unclear, Some(look)) => seen(look, caller).unwrap_or_else(|| unknown(caller)),
        (Cause::Unclear, None) => unknown(caller),
    };
    format!("{words} ({said})")
}

/// What a look has found, in words.
fn seen(look: &Look, caller: &Caller<'_>) -> Option<String> {
    let words = match look {
        Look::Found(words) => words,
        Look::CertificateWanted => WANTED,
        Look::CertificateRefused => return Some(refused(caller)),
        Look::NoHandshake => {
            "what listens at {} ends the TLS handshake without a word: it is no etcd, or does not speak TLS"
        }
        Look::SpeaksTls => "what listens at {} speaks TLS: write https:// in --etcd-endpoints",
        Look::Silent => SILENT,
        Look::Answers => "the connection to {} was cut, and what listens there answers again",
        Look::Failed(second) => match cause(second, caller) {
            Cause::Known(words) => return Some(words),
            _ => return None,
        },
        Look::Nothing => return None,
    };
    Some(fill(words, caller))
}

/// The cause can't be known from here.
fn unknown(caller: &Caller<'_>) -> String {
    let words = "{} ends the connection and does not say why: look into etcd's log, and into that of a proxy before it";
    fill(words, caller)
}

fn fill(words: &str, caller: &Caller<'_>) -> String {
    words.replace("{}", caller.endpoint)
}

/// What a server is by its first bytes, after it was sent a plain HTTP request for `/version`. `https`: the endpoint says
/// that it speaks TLS.
pub(super) fn server(answer: &[u8], https: bool) -> Look {
    const TLS_ALERT: [u8; 2] = [0x15, 0x03];
    let text = String::from_utf8_lossy(answer);
    let speaks_tls = answer.starts_with(&TLS_ALERT) || text.contains("HTTP request to an HTTPS server");
    let found = |words: &str| Look::Found(words.to_owned());
    if speaks_tls || text.contains("HTTPS port") {
        return if https { Look::Nothing } else { Look::SpeaksTls };
    }
    if text.starts_with("SSH-") {
        return found("an SSH server listens at {}, and no etcd");
    }
    if !text.starts_with("HTTP/") {
        return if answer.is_empty() { Look::Nothing } else { found("what listens at {} is no etcd") };
    }
    if !text.contains("etcdserver") {
        let name = text.lines().find_map(|line| line.strip_prefix("Server: ").or(line.strip_prefix("server: ")));
        return match name.map(printable).filter(|name| !name.is_empty()) {
            Some(name) => Look::Found(format!("an HTTP server ({name}) listens at {{}}, and no etcd")),
            None => found("an HTTP server listens at {}, and no etcd"),
        };
    }
    if https {
        return found("etcd at {} does not speak TLS: write http:// in --etcd-endpoints");
    }
    if text.contains(r#""etcdcluster":"2."#) || text.contains(r#""etcdserver":"2."#) {
        return found("etcd at {} is of version 2, and version 3 is needed");
    }
    Look::Answers
}

/// A server's name for itself, cut and cleaned: it may be anybody's.
fn printable(name: &str) -> String {
    const MOST: usize = 40;
    name.trim().chars().filter(|c| c.is_ascii_graphic() || *c == ' ').filter(|c| *c != '{').take(MOST).collect()
}

#[cfg(test)]
mod tests;

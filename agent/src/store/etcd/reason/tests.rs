//! Each text that was seen, and its words.

use super::*;

const CALLER: Caller<'_> =
    Caller { endpoint: "https://e:1", has_ca: true, has_certificate: false, fault: None, has_user: false };

#[track_caller]
fn known(said: &str, caller: &Caller<'_>) -> String {
    match cause(said, caller) {
        Cause::Known(words) => words,
        other => panic!("{said}: {other:?}"),
    }
}

#[test]
fn texts_that_were_seen_have_words() {
    for (said, words) in [
        ("tcp connect error: Connection refused (os error 111)", "nothing listens at https://e:1"),
        ("dns error: failed to lookup address information: Name or service not known", "the resolver does not know"),
        (
            "dns error: failed to lookup address information: Temporary failure in name resolution",
            "the resolver does not",
        ),
        ("tcp connect error: Network is unreachable (os error 101)", "no route leads to https://e:1"),
        ("tcp connect error: No route to host (os error 113)", "no route leads to https://e:1, or its host is not up"),
        ("tcp connect error: Permission denied (os error 13)", "a local firewall forbids"),
        ("tcp connect error: deadline has elapsed", "https://e:1 takes no connection"),
        ("h2 protocol error: keep-alive timed out", "https://e:1 stopped answering"),
        ("no answer in 5 s", "https://e:1 accepts connections and does not answer"),
        ("no answer to a watch", "https://e:1 accepts connections and does not answer"),
        ("invalid peer certificate: UnknownIssuer", "is not trusted: no authority in --etcd-cafile signed"),
        ("invalid peer certificate: BadSignature", "is not trusted: no authority in --etcd-cafile signed"),
        ("invalid peer certificate: Expired", "is not trusted: its certificate has expired"),
        ("invalid peer certificate: certificate expired: verification time 2 (UNIX)", "its certificate has expired"),
        ("invalid peer certificate: NotValidYet", "its certificate is not valid yet, or this host's clock is wrong"),
        ("invalid peer certificate: certificate not valid for name \"e\"", "its certificate is for another name"),
        ("invalid peer certificate: CaUsedAsEndEntity", "its certificate is that of an authority"),
        ("connection error: received fatal alert: BadCertificate", "asks for a client certificate and is given none"),
        ("received fatal alert: CertificateRequired", "asks for a client certificate and is given none"),
        ("received fatal alert: HandshakeFailure", "or has no cipher in common with us"),
        ("received fatal alert: ProtocolVersion", "no TLS version or cipher in common"),
        ("received fatal alert: NoApplicationProtocol", "does not speak HTTP/2: it is no etcd"),
        ("etcdserver: no leader", "etcd has no leader: a majority of its members is not up"),
        ("etcdserver: mvcc: database space exceeded", "space quota is used up (alarm NOSPACE)"),
        ("etcdserver: too many requests", "etcd is overloaded"),
        ("etcdserver: request timed out", "etcd can't commit in time"),
        ("etcdserver: request timed out, possibly due to previous leader failure", "etcd can't commit in time"),
        ("etcdserver: request is too large", "larger than etcd takes"),
        ("Error, decoded message length too large: found 5 bytes", "etcd's answer is larger than 4 MiB"),
        ("etcdserver: rpc not supported for learner", "is a learner"),
        ("etcdserver: corrupt cluster", "alarm CORRUPT"),
        ("etcdserver: user name is empty", "give --etcd-username and --etcd-password"),
        ("etcdserver: authentication failed, invalid user ID or password", "does not take --etcd-username"),
        ("etcdserver: invalid auth token", "etcd has forgotten our login"),
        ("etcdserver: revision of auth store is old", "users or roles have changed"),
        ("unknown service etcdserverpb.KV", "speaks gRPC and is no etcd v3"),
        ("grpc-status header missing, mapped from HTTP status code 502", "is it a proxy"),
    ] {
        let got = known(said, &CALLER);
        assert!(got.contains(words), "{said}: {got}");
        let whole = explained(said, cause(said, &CALLER), None, &CALLER);
        assert_eq!(whole, format!("{got} ({said})"), "the original words stay");
    }
}

#[test]
fn flags_that_are_given_change_the_words() {
    let no_ca = Caller { has_ca: false, ..CALLER };
    assert!(
        known("invalid peer certificate: UnknownIssuer", &no_ca).ends_with("name its authority with --etcd-cafile")
    );
    let user = Caller { has_user: true, ..CALLER };
    assert!(known("etcdserver: user name is empty", &user).contains("although --etcd-username is given"));
    let own = Caller { has_certificate: true, ..CALLER };
    let alert = |name: &str, caller: &Caller<'_>| known(&format!("received fatal alert: {name}"), caller);
    assert!(alert("UnknownCA", &own).ends_with("the authority that signed it is not in etcd's --trusted-ca-file"));
    assert!(alert("CertificateExpired", &own).contains("--etcd-certfile: it has expired"));
    assert!(alert("BadCertificate", &own).ends_with("--trusted-ca-file"));
    let old = Caller { fault: Some("it has expired"), ..own };
    let words = "etcd at https://e:1 refuses the certificate of --etcd-certfile: it has expired";
    assert_eq!(alert("BadCertificate", &old), words);
}

#[test]
fn what_is_unclear_is_told_by_another_look_or_said_to_be_unknown() {
    for said in [
        "connection error: stream closed because of a broken pipe",
        "operation was canceled: connection closed",
        "h2 protocol error: error reading a body from connection",
        "h2 protocol error: http2 error: connection error detected: frame with invalid size",
        "tls handshake eof",
        "received corrupt message of type InvalidContentType",
        "connection error: Connection reset by peer (os error 104)",
        "connection error: peer closed connection without sending TLS close_notify: UnexpectedEof",
    ] {
        assert_eq!(cause(said, &CALLER), Cause::Unclear, "{said}");
    }
    let said = "tls handshake eof";
    let with = |look: Option<Look>| explained(said, Cause::Unclear, look.as_ref(), &CALLER);
    for (look, words) in [
        (Look::CertificateWanted, "asks for a client certificate and is given none"),
        (Look::CertificateRefused, "refuses the certificate of --etcd-certfile"),
        (Look::SpeaksTls, "speaks TLS: write https://"),
        (Look::NoHandshake, "ends the TLS handshake without a word"),
        (Look::Failed("Connection refused (os error 111)".into()), "nothing listens at https://e:1"),
        (Look::Failed("whatever".into()), "does not say why"),
        (Look::Answers, "was cut, and what listens there answers again"),
        (Look::Nothing, "does not say why: look into etcd's log"),
        (Look::Found("an SSH server listens at {}".into()), "an SSH server listens at https://e:1 (tls"),
    ] {
        let got = with(Some(look));
        assert!(got.contains(words) && got.ends_with("(tls handshake eof)"), "{got}");
    }
    assert_eq!(explained("who knows", cause("who knows", &CALLER), None, &CALLER), "who knows");
    // A file's error is none of the network's.
    assert_eq!(cause("Permission denied (os error 13)", &CALLER), Cause::Other);
}

#[test]
fn a_server_is_known_by_its_answer() {
    let v3 = b"HTTP/1.1 200 OK\r\n\r\n{\"etcdserver\":\"3.4.23\",\"etcdcluster\":\"3.4.0\"}";
    let v2 = b"HTTP/1.1 200 OK\r\n\r\n{\"etcdserver\":\"2.3.8\",\"etcdcluster\":\"2.3.0\"}";
    let go = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
    let found = |words: &str| Look::Found(words.to_owned());
    for (answer, https, look) in [
        (&v3[..], false, Look::Answers),
        (v3, true, found("etcd at {} does not speak TLS: write http:// in --etcd-endpoints")),
        (v2, false, found("etcd at {} is of version 2, and version 3 is needed")),
        (go, false, Look::SpeaksTls),
        (b"\x15\x03\x01\0\x02\x02\x16", false, Look::SpeaksTls),
        (b"SSH-2.0-x\r\n", true, found("an SSH server listens at {}, and no etcd")),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", false, found("an HTTP server listens at {}, and no etcd")),
        (b"HTTP/1.1 404\r\nServer: a\x1b{}b\r\n\r\n", false, found("an HTTP server (a}b) listens at {}, and no etcd")),
        (b"220 mail.example ESMTP\r\n", false, found("what listens at {} is no etcd")),
        (b"", false, Look::Nothing),
    ] {
        assert_eq!(server(answer, https), look, "{}", String::from_utf8_lossy(answer));
    }
}

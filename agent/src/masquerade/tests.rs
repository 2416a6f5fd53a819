use super::*;

#[test]
fn a_kernel_without_nf_tables_is_told_from_one_that_refuses() {
    let refused = |code| Error::Refused { step: "read the rules", source: io::Error::from_raw_os_error(code) };
    assert!(refused(libc::EOPNOTSUPP).unsupported() && refused(libc::EINVAL).unsupported());
    assert!(!refused(libc::EPERM).unsupported() && !refused(libc::EBUSY).unsupported());
    assert!(!Error::Changing { step: "read the rules" }.unsupported());
}

/// A socket that fails again and again must not be a reason to write the tables again and again.
#[test]
fn new_sockets_find_the_tables_that_the_old_ones_wrote() {
    let in_a_namespace = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let net = |net: &str| net.parse().unwrap();
        let side =
            Side { network: net("10.5.0.0/16"), subnet: net("10.5.1.0/24"), device: Some("flannel.1".to_owned()) };
        let wanted = WantedRules {
            mark: "1".to_owned(),
            sides: vec![side],
            masquerade: true,
            fully_random: true,
            forward: true,
        };
        let mut known = Known::of(&wanted);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _within = runtime.enter();
        for time in 0..3 {
            let (mended, error) = Masquerade::open(&wanted, &mut known).unwrap().mend();
            assert!(error.is_none(), "{error:?}");
            assert_eq!((mended.new.is_empty(), mended.again.len()), (time > 0, 0), "time {time}");
        }
        // What somebody has changed meanwhile is not new, but counted as his doing.
        known.tables[0].shown = Some(Vec::new());
        let (mended, _) = Masquerade::open(&wanted, &mut known).unwrap().mend();
        assert_eq!((mended.new.len(), mended.again.len()), (0, 1));
        assert!(known.news("missing", "iptables-legacy") && !known.news("missing", "iptables-legacy"));
    };
    std::thread::spawn(in_a_namespace).join().unwrap();
}

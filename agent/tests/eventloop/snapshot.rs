//! What the loop publishes of itself.

use twill_agent::snapshot::in_words;

use super::*;

/// The number of misses of this kind that came to this result.
fn misses(snapshot: &Snapshot, kind: &str, result: &str) -> u64 {
    let mut counts = snapshot.families[0].counts.misses();
    counts.find_map(|(of_kind, of_result, count)| ((of_kind, of_result) == (kind, result)).then_some(count)).unwrap()
}

/// Each time the device is there again, and yet no packet passes for long.
#[tokio::test(start_paused = true)]
async fn a_node_whose_device_another_program_keeps_changing_is_not_ready_until_it_is_calm() {
    Node::run(PeerMode::All, Shared::default(), &[1], async |node| {
        let now = || node.snapshot.borrow().clone();
        let is_fight = || in_words(&now().missing) == "kernel: another program keeps changing the device flannel.1";
        node.until("ready", |_| now().missing.is_empty()).await;
        for time in 1..=30 {
            node.kernel.kernel().device = None;
            node.kernel.tell(KernelEvent::Device);
            node.until("it is restored", |_| now().families[0].restores == time && now().families[0].is_in_step).await;
            assert_eq!(is_fight(), time > 10, "{time}: {:?}", now().missing);
        }
        let calm = tokio::time::Instant::now();
        node.until("ready again", |_| now().missing.is_empty()).await;
        assert!((9..=11).contains(&calm.elapsed().as_secs()), "{:?}", calm.elapsed());
        // One more is no fight anew once the minute is over.
        tokio::time::sleep(Duration::from_secs(60)).await;
        node.kernel.kernel().device = None;
        node.kernel.tell(KernelEvent::Device);
        node.until("it is restored", |_| now().families[0].restores == 31 && now().families[0].is_in_step).await;
        assert_eq!(now().missing, []);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_the_daemon_did_is_in_the_snapshot() {
    Node::run(PeerMode::OnDemand, Shared::default(), &[1, 2, 3], async |node| {
        let now = || node.snapshot.borrow().clone();
        node.until("ready", |_| now().missing.is_empty() && now().peers().all() == 3).await;
        let (start, family) = (now(), now().families[0].clone());
        assert_eq!((family.device.name.as_str(), family.peers.absent, now().peers().in_kernel), ("flannel.1", 3, 0));
        assert_eq!(start.lease.as_ref().map(|lease| lease.subnet.as_str()), Some(node.key.as_str()));
        assert!(start.lease.and_then(|lease| lease.ends).is_some() && family.is_in_step);

        let ask = |address: &str| node.kernel.tell(KernelEvent::Miss(Miss::Address(address.parse().unwrap())));
        ["10.5.1.7", "10.5.99.7", "10.5.99.8", "10.9.0.1"].into_iter().for_each(ask);
        node.kernel.tell(KernelEvent::Miss(Miss::Mac(MacAddr([2, 0, 0, 0, 0, 2]))));
        node.kernel.tell(KernelEvent::Overrun);
        node.until("two peers in the kernel", |_| now().peers().in_kernel == 2).await;
        let counted = [("l3", "answered"), ("l3", "refused"), ("l3", "refused_before"), ("l3", "unknown")];
        assert_eq!(counted.map(|(kind, result)| misses(&now(), kind, result)), [1; 4]);
        assert_eq!(misses(&now(), "l2", "answered"), 1);
        let family = now().families[0].clone();
        assert_eq!((family.overruns, family.peers.absent, family.peers.all()), (1, 1, 3));
        assert!(family.counts.batches > 0 && family.counts.operations >= 7 && family.counts.failures == 0);

        node.kernel.kernel().routes.clear();
        node.kernel.tell(KernelEvent::Device);
        node.until("both peers mended", |_| now().families[0].counts.peers_mended == 2).await;
        node.until("both peers again", |_| now().peers().in_kernel == 2).await;

        node.store.remove(&peer(1).0);
        node.until("a peer has left", |_| (now().peers().all(), now().peers().in_kernel) == (2, 1)).await;
        node.store.down();
        node.until("etcd is away", |_| now().etcd.down.is_some() && now().etcd.outages == 1).await;
        node.store.up();
        node.until("etcd is back", |_| now().etcd.down.is_none() && now().missing.is_empty()).await;
    })
    .await;
}

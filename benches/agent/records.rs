//! Made-up peers and their records: the `i`th has the `i`th subnet behind those that real nodes take.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etcd_client::{Client, DeleteOptions, Txn, TxnOp, TxnResponse, WatchOptions};
use tokio::task::JoinSet;
use twill_lab::PREFIX;

/// A network with 131,072 subnets, away from the lab's own addresses.
pub(crate) const CONFIG: &str = r#"{"Network":"10.128.0.0/9","SubnetLen":26,"Backend":{"Type":"vxlan"}}"#;
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const SUBNET_LEN: u8 = 26;
/// Real nodes lease one of the first hundred.
const FIRST: u32 = 256;
/// Where the peers' hosts are: nobody is there.
const HOSTS: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);

/// etcd's default for `--max-txn-ops`.
const OPS: u32 = 128;
/// Transactions under way at once.
const PIPELINE: usize = 8;

/// The peer's subnet as `10.128.64.0/26`.
pub(crate) fn subnet(i: u32) -> String {
    format!("{}/{SUBNET_LEN}", gateway(i))
}

/// Its first address.
pub(crate) fn gateway(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(NETWORK) + ((FIRST + i) << (32 - SUBNET_LEN)))
}

/// The MAC of its device.
pub(crate) fn mac(i: u32) -> String {
    let [a, b, c, d] = i.to_be_bytes();
    format!("02:77:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Its host.
pub(crate) fn remote(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(HOSTS) + 1 + i)
}

fn key(i: u32) -> String {
    format!("{PREFIX}/subnets/{}-{SUBNET_LEN}", gateway(i))
}

fn value(i: u32) -> String {
    format!(
        r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{}"}}}}"#,
        remote(i),
        mac(i)
    )
}

/// A client of the lab's etcd.
pub(crate) struct Records(Client);

impl Records {
    /// Connects, from within a namespace that reaches etcd.
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        Client::connect([url], None).await.map(Self).context("connect to etcd")
    }

    /// Writes one record and returns when etcd has it.
    pub(crate) async fn put_one(&mut self, i: u32) -> Result<()> {
        self.0.put(key(i), value(i), None).await.context("put a record")?;
        Ok(())
    }

    /// Writes records as fast as etcd takes them; the time of the last acknowledgement.
    pub(crate) async fn put(&mut self, range: Range<u32>) -> Result<Instant> {
        self.write(range, |i| TxnOp::put(key(i), value(i), None)).await
    }

    /// Deletes records as fast as etcd does it; the time of the last acknowledgement.
    pub(crate) async fn delete(&mut self, range: Range<u32>) -> Result<Instant> {
        self.write(range, |i| TxnOp::delete(key(i), None)).await
    }

    async fn write(&self, range: Range<u32>, op: impl Fn(u32) -> TxnOp) -> Result<Instant> {
        let mut under_way: JoinSet<Result<TxnResponse, etcd_client::Error>> = JoinSet::new();
        for start in range.clone().step_by(OPS as usize) {
            if under_way.len() >= PIPELINE {
                under_way.join_next().await.context("a write")??.context("write records")?;
            }
            let ops: Vec<TxnOp> = (start..range.end.min(start + OPS)).map(&op).collect();
            let mut client = self.0.clone();
            under_way.spawn(async move { client.txn(Txn::new().and_then(ops)).await });
        }
        while let Some(written) = under_way.join_next().await {
            written?.context("write records")?;
        }
        Ok(Instant::now())
    }

    /// Times writes of keys that no daemon watches until a watch of our own tells of them: what etcd needs by itself.
    pub(crate) async fn bare_watch(&mut self, writes: u32) -> Result<Vec<Duration>> {
        const APART: &str = "/bench/";
        let options = WatchOptions::new().with_prefix();
        let mut stream = self.0.watch(APART, Some(options)).await.context("watch")?;
        stream.message().await?.context("a watch")?;
        let mut times = Vec::new();
        for i in 0..writes {
            let mut writer = self.0.clone();
            let start = Instant::now();
            let (put, told) = tokio::join!(writer.put(format!("{APART}{i}"), value(i), None), async {
                (stream.message().await, Instant::now())
            });
            put.context("put a key")?;
            told.0?.context("the watch")?;
            times.push(told.1 - start);
        }
        self.0.delete(APART, Some(DeleteOptions::new().with_prefix())).await?;
        Ok(times)
    }
}

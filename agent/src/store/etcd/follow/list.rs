//! A complete read in pages, all at the first page's revision.

use etcd_client::{Client, GetOptions, GetResponse, Txn, TxnOp, TxnResponse};

use super::{Cursor, Follower, Unheard, broken, gets, reading, value};
use crate::store::etcd::failure::{Access, Failure, Kind};
use crate::store::etcd::history::History;
use crate::store::{RawRecord, StoreEvent};

/// Keys in a page. The client refuses answers over 4 MiB, and a record has some 150 bytes.
const PAGE: i64 = 1_000;
impl Follower {
    /// A complete read.
    pub(super) async fn list(&mut self) -> Result<Cursor, Unheard> {
        'again: loop {
            let mut limit = PAGE;
            let (mut page, at) = loop {
                match self.first_page(limit).await {
                    Ok(first) => break first,
                    Err(failure) => limit = self.page_failed(failure, limit).await?,
                }
            };
            self.tell(StoreEvent::Listing).await?;
            self.tell(StoreEvent::Config(at.text.clone())).await?;
            let revision = at.records - 1;
            loop {
                let last = page.kvs().last().map(|kv| [kv.key(), &[0]].concat());
                let records: Vec<RawRecord> = page.take_kvs().iter().filter_map(|kv| self.keys.record(kv)).collect();
                if !records.is_empty() {
                    self.tell(StoreEvent::Page(records)).await?;
                }
                let Some(from) = last.filter(|_| page.more()) else { break };
                page = loop {
                    match self.next_page(from.clone(), limit, revision).await {
                        Ok(page) => break page,
                        Err(failure) if failure.kind == Kind::Compacted => {
                            self.failed(failure).await?;
                            continue 'again;
                        }
                        Err(failure) => limit = self.page_failed(failure, limit).await?,
                    }
                };
            }
            self.tell(StoreEvent::Listed { revision }).await?;
            return Ok(at);
        }
    }

    /// The config and the first records, in one request and so at one revision.
    async fn first_page(&self, limit: i64) -> Result<(GetResponse, Cursor), Failure> {
        let from = self.keys.subnets.as_str();
        let range = GetOptions::new().with_prefix().with_limit(limit);
        let (access, config) = (reading(&self.keys), self.keys.config.as_str());
        let answer = self.read(access, [TxnOp::get(config, None), TxnOp::get(from, Some(range))]).await?;
        let mut gets = gets(&answer);
        match (answer.header(), gets.next(), gets.next()) {
            (Some(header), Some(config), Some(records)) => {
                let (next, text) = (header.revision() + 1, value(config));
                Ok((records, Cursor { records: next, config: next, text, history: History::of(header) }))
            }
            _ => Err(broken(access, "an answer without its parts")),
        }
    }

    /// Several reads at one revision, in one request.
    pub(super) async fn read(&self, access: Access<'_>, reads: [TxnOp; 2]) -> Result<TxnResponse, Failure> {
        let txn = Txn::new().and_then(reads);
        let call = |client: Client| {
            let txn = txn.clone();
            async move { client.kv_client().txn(txn).await }
        };
        self.connection.retried(access, call).await
    }

    async fn next_page(&self, from: Vec<u8>, limit: i64, revision: i64) -> Result<GetResponse, Failure> {
        // '0' follows '/': the end of everything below `subnets/`.
        let end = format!("{}0", self.keys.subnets.trim_end_matches('/'));
        let range = GetOptions::new().with_range(end).with_limit(limit).with_revision(revision);
        let call = |client: Client| {
            let (from, range) = (from.clone(), Some(range.clone()));
            async move { client.kv_client().get(from, range).await }
        };
        self.connection.retried(reading(&self.keys), call).await
    }

    /// The limit for the next try.
    async fn page_failed(&mut self, failure: Failure, limit: i64) -> Result<i64, Unheard> {
        // Somebody's megabytes under a key of ours must not hide all the others.
        if failure.kind == Kind::TooLarge && limit > 1 {
            return Ok((limit / 8).max(1));
        }
        self.failed(failure).await?;
        Ok(limit)
    }
}

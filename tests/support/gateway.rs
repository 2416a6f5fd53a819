//! Keys and values of any bytes and any size, many at once: etcd's JSON gateway, since a program's arguments hold no megabyte,
//! and a program a key takes long.
//!
//! See <https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/>.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::lab::{Lab, PREFIX};

/// etcd's own limit for the operations of one transaction.
const OPERATIONS: usize = 128;

/// What somebody else does to a key.
#[derive(Debug, Clone)]
pub struct Forged {
    /// The whole key.
    pub key: String,
    /// Its new value; `None`: it is deleted.
    pub value: Option<String>,
    /// The etcd lease that it hangs on from then on, 0 for none.
    pub lease: i64,
}

impl Forged {
    fn request(&self) -> (&'static str, Value) {
        let key = base64(self.key.as_bytes());
        match &self.value {
            // The gateway's 64-bit numbers are strings.
            Some(value) => {
                ("/v3/kv/put", json!({"key": key, "value": base64(value.as_bytes()), "lease": self.lease.to_string()}))
            }
            None => ("/v3/kv/deleterange", json!({ "key": key })),
        }
    }
}

impl Lab {
    /// Does one thing after the other with such a pause between two: a load, of so many writes a second.
    #[track_caller]
    pub fn forge(&self, pause: Duration, forged: impl Iterator<Item = Forged> + Send) {
        self.post(forged.map(|forged| {
            sleep(pause);
            forged.request()
        }));
    }

    /// Writes the record of this key below `<prefix>/subnets/`.
    #[track_caller]
    pub fn put_raw(&self, key: &[u8], value: &[u8]) {
        self.put_all_raw(&[(key.to_vec(), value.to_vec())]);
    }

    /// Writes many records, which have different keys, in few requests.
    #[track_caller]
    pub fn put_all_raw(&self, records: &[(Vec<u8>, Vec<u8>)]) {
        let put = |(key, value): &(Vec<u8>, Vec<u8>)| {
            let key = [format!("{PREFIX}/subnets/").as_bytes(), key].concat();
            json!({"requestPut": {"key": base64(&key), "value": base64(value)}})
        };
        let requests = records.chunks(OPERATIONS).map(|chunk| {
            let puts: Vec<Value> = chunk.iter().map(put).collect();
            ("/v3/kv/txn", json!({ "success": puts }))
        });
        self.post(requests);
    }

    /// Writes one record again and again.
    #[track_caller]
    pub fn put_in_turn(&self, key: &str, values: impl Iterator<Item = String> + Send) {
        let key = base64(format!("{PREFIX}/subnets/{key}").as_bytes());
        self.post(values.map(|value| ("/v3/kv/put", json!({"key": key, "value": base64(value.as_bytes())}))));
    }

    /// Writes the network config, of any size.
    #[track_caller]
    pub fn put_large_config(&self, text: &str) {
        let key = base64(format!("{PREFIX}/config").as_bytes());
        self.post(std::iter::once(("/v3/kv/put", json!({"key": key, "value": base64(text.as_bytes())}))));
    }

    #[track_caller]
    fn post(&self, requests: impl Iterator<Item = (&'static str, Value)> + Send) {
        let address = self.etcd().url().trim_start_matches("http://").to_owned();
        let posted = self.fabric().enter(|| -> Result<()> {
            for (path, body) in requests {
                post(&address, path, &body.to_string())?;
            }
            Ok(())
        });
        if let Err(e) = posted.and_then(|posted| posted) {
            panic!("write to etcd: {e:#}");
        }
    }
}

fn post(address: &str, path: &str, body: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "POST {path}: {answer}");
    Ok(())
}

/// RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit <= chunk.len() { char::from(DIGITS[value]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, expected) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(text.as_bytes()), expected);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }
}

//! Which etcd a test runs on.

use std::path::{Path, PathBuf};

/// An etcd to test with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    /// The one of the search path: 3.4 on Debian 12.
    Distribution,
    /// 3.5, where `make etcd-3.5` puts it.
    V35,
}

impl Release {
    /// `etcd` or `etcdctl`.
    pub(crate) fn program(self, name: &str) -> PathBuf {
        match self {
            Self::Distribution => name.into(),
            Self::V35 => {
                let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/etcd-3.5");
                let program = dir.join(name);
                assert!(program.is_file(), "no {name} in {}: `make etcd-3.5` fetches it", dir.display());
                program
            }
        }
    }
}

/// Makes a test on either etcd of each `async fn(release: Release)`.
#[allow(unused_macros, reason = "the chaos test is no async fn")]
macro_rules! on_each_etcd {
    ($($name:ident),* $(,)?) => {
        mod etcd_of_the_distribution {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::etcd_server::Release::Distribution).await;
            })*
        }
        mod etcd_3_5 {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::etcd_server::Release::V35).await;
            })*
        }
    };
}
pub(crate) use on_each_etcd;

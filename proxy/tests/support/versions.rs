//! One test for each version of etcd. Apart from the rest, because only the tests of etcd use it.

/// What has to be so whatever the version.
macro_rules! on_both_versions {
    ($($name:ident),*) => {
        mod installed { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(crate::support::etcd::Version::Installed).await }
        )* }
        mod v3_5 { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(crate::support::etcd::Version::V3_5).await }
        )* }
    };
}
pub(crate) use on_both_versions;

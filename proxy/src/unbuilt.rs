//! What the configuration file may say already, but this version cannot do yet.

use pointsman_config::{Config, Discovery, Listener, ListenerTls, LogFormat};

/// A sentence for each setting that needs a part which is not built yet, with its place in the file.
/// `run` refuses to start while there is one; `check` prints them.
pub fn unbuilt(config: &Config) -> Vec<String> {
    let mut missing = Vec::new();
    for cluster in &config.clusters {
        let name = &cluster.name;
        if matches!(cluster.discovery, Discovery::Static(_)) {
            missing.push(format!(
                "clusters.{name}.discovery.{}: only etcd, consul and patroni are built yet",
                cluster.discovery.as_str()
            ));
        }
        if cluster.sql.is_some() {
            missing.push(format!("clusters.{name}.sql: SQL probes are not built yet"));
        }
    }
    for listener in &config.listeners {
        of_listener(listener, &mut missing);
    }
    if !config.admin.users.is_empty() {
        missing.push(
            "admin.users: signing in is not built yet; without users the pages are read-only".to_owned(),
        );
    }
    if config.log.format == LogFormat::Haproxy {
        missing.push("log.format = \"haproxy\": not built yet; there is \"text\" and \"json\"".to_owned());
    }
    missing
}

fn of_listener(listener: &Listener, missing: &mut Vec<String>) {
    let name = &listener.name;
    if let ListenerTls::Terminate { .. } = listener.tls {
        missing.push(format!("listeners.{name}.tls.mode = \"terminate\": not built yet; \"passthrough\" is"));
    }
    if listener.server_tls.is_some() {
        missing.push(format!("listeners.{name}.server_tls: TLS to the servers is not built yet"));
    }
    if listener.accept_proxy {
        missing.push(format!("listeners.{name}.accept_proxy: the PROXY protocol is not built yet"));
    }
    if listener.send_proxy.is_some() {
        missing.push(format!("listeners.{name}.send_proxy: the PROXY protocol is not built yet"));
    }
}

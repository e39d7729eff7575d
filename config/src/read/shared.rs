//! What several parts of the file write in the same way: names, addresses, networks, files, TLS, secrets.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use ipnet::IpNet;

use crate::{
    ClientTls, Credentials, Endpoint, HostPort, NameError, Scheme, Secret, SecretSource, Verify,
    reader::{Context, Problem, Span, Table, Value, quote},
};

/// Reads one of the name types.
pub(crate) fn name<N: FromStr<Err = NameError>>(text: &str) -> Result<N, Problem> {
    text.parse().map_err(|error: NameError| {
        let help = "write 1 to 64 letters, digits, `.`, `_` or `-`";
        Problem::new(format!("{} cannot be a name: {error}", quote(text)), help)
    })
}

/// A path with a default; nothing needs to be there yet.
pub(crate) fn path(table: &mut Table<'_>, key: &'static str, default: &str) -> PathBuf {
    let written = table.get(key).and_then(|value| value.text(&format!("{default:?}")));
    table.cx.resolve(written.unwrap_or(default))
}

/// A path of a UNIX socket: Linux allows 107 bytes.
pub(crate) fn socket(table: &mut Table<'_>, key: &'static str, default: &str) -> (PathBuf, Span) {
    let path = path(table, key, default);
    let span = table.get(key).map_or_else(|| table.span(), |value| value.span());
    if path.as_os_str().len() > 107 {
        let message = "the path of a UNIX socket has at most 107 bytes";
        table.cx.error(&span, message, format!("write a shorter path: {key} = {default:?}"));
    }
    (path, span)
}

/// One address to listen on, with its place.
#[derive(Clone)]
pub(crate) struct Bind {
    pub(crate) address: SocketAddr,
    pub(crate) span: Span,
    /// False for the default of `[admin]`: there is nothing of it in the file to underline.
    pub(crate) written: bool,
}

/// Every address of the file that this host listens on.
#[derive(Default)]
pub(crate) struct Binds(Vec<Bind>);

impl Binds {
    pub(crate) fn extend(&mut self, more: impl IntoIterator<Item = Bind>) {
        self.0.extend(more);
    }

    /// Reports each pair that the kernel would refuse. IPv4 and IPv6 never meet: `IPV6_V6ONLY` is always set.
    pub(crate) fn check(&self, cx: &Context<'_>) {
        for (index, bind) in self.0.iter().enumerate() {
            let earlier = self.0.iter().take(index);
            let Some(other) = earlier.into_iter().find(|other| overlap(other.address, bind.address)) else {
                continue;
            };
            if !bind.written {
                let message = format!(
                    "`{}` overlaps with `{}`, where [admin] listens by default",
                    other.address, bind.address
                );
                let help = "write another port here, or [admin] with bind = \"127.0.0.1:7001\"";
                cx.error(&other.span, message, help);
                continue;
            }
            let (ours, line) = (bind.address, cx.line(&other.span));
            let message = if other.address == ours {
                format!("`{ours}` is there twice, first in line {line}")
            } else {
                format!("`{ours}` overlaps with `{}` in line {line}", other.address)
            };
            cx.error(&bind.span, message, "write another port or another address");
        }
    }
}

fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.is_ipv4() == b.is_ipv4() && (any || a.ip() == b.ip())
}

/// `bind`: one address or a list. `usual`: the port to suggest where none can be read.
pub(crate) fn binds(value: Value<'_>, usual: u16) -> Vec<Bind> {
    let example = format!("\"0.0.0.0:{usual}\"");
    let bind = |item: Value<'_>| {
        let address = item.parse(&example, |text| socket_addr(text, usual))?;
        Some(Bind { address, span: item.span(), written: true })
    };
    value.one_or_more().into_iter().filter_map(bind).collect()
}

/// An IP address and a port. `usual`: the port to suggest where none can be read.
pub(crate) fn socket_addr(text: &str, usual: u16) -> Result<SocketAddr, Problem> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 {
            let message = format!("{} has port 0", quote(text));
            return Err(Problem::new(message, "write a port from 1 to 65535"));
        }
        return Ok(address);
    }
    let message = format!("{} is not an IP address with a port", quote(text));
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let port = port.parse().ok().filter(|port: &u16| *port > 0).unwrap_or(usual);
    let ip = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>();
    let help = match ip(host).or_else(|_| ip(text)) {
        Ok(ip) => format!("write \"{}\"", SocketAddr::new(ip, port)),
        Err(_) => format!("write \"0.0.0.0:{port}\", \"127.0.0.1:{port}\" or \"[::]:{port}\""),
    };
    Err(Problem::new(message, help))
}

/// A network, or one address.
pub(crate) fn network(text: &str) -> Result<IpNet, Problem> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(ip));
    }
    let Ok(net) = text.parse::<IpNet>() else {
        let message = format!("{} is not a network", quote(text));
        return Err(Problem::new(message, "write \"10.0.0.0/8\", \"fd00::/8\" or a single address"));
    };
    if net.trunc() != net {
        let message = format!("{} has bits set behind its prefix", quote(text));
        return Err(Problem::new(message, format!("write \"{}\"", net.trunc())));
    }
    Ok(net)
}

/// A list of networks.
pub(crate) fn networks(table: &mut Table<'_>, key: &'static str) -> Vec<IpNet> {
    let example = "[\"10.0.0.0/8\"]";
    let items = table.get(key).and_then(|value| value.list(example)).unwrap_or_default();
    items.into_iter().filter_map(|item| item.parse("\"10.0.0.0/8\"", network)).collect()
}

/// Host and port; `port` is the usual one, for the example.
pub(crate) fn host_port(text: &str, port: u16) -> Result<HostPort, Problem> {
    HostPort::parse(text).map_err(|what| {
        let help = format!("write \"{}\"", probably_meant(text, port));
        Problem::new(format!("{} {what}", quote(text)), help)
    })
}

/// `http://host:port`. `assume` is the scheme of an endpoint that has none, where that is allowed.
pub(crate) fn endpoint(
    text: &str,
    port: u16,
    tls: bool,
    assume: Option<Scheme>,
) -> Result<Endpoint, Problem> {
    let usual = if tls { Scheme::Https } else { Scheme::Http };
    let (scheme, rest) = match (text.split_once("://"), assume) {
        (Some(("http", rest)), _) => (Scheme::Http, rest),
        (Some(("https", rest)), _) => (Scheme::Https, rest),
        (Some((_, rest)), _) => {
            let message = format!("{} is neither http nor https", quote(text));
            return Err(Problem::new(message, format!("write {}", quoted_url(usual, rest, port))));
        }
        (None, Some(scheme)) => (scheme, text),
        (None, None) => {
            let message = format!("{} has no scheme", quote(text));
            return Err(Problem::new(message, format!("write {}", quoted_url(usual, text, port))));
        }
    };
    if rest.contains('@') {
        let help =
            "write the user and the file of its password in keys of their own, and only host and port here";
        return Err(Problem::new("an address must not hold a user name or a password", help));
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        let message = format!("{} has a path", quote(text));
        return Err(Problem::new(message, format!("write {}", quoted_url(scheme, rest, port))));
    }
    let address = HostPort::parse(rest).map_err(|what| {
        Problem::new(format!("{} {what}", quote(text)), format!("write {}", quoted_url(scheme, rest, port)))
    })?;
    Ok(Endpoint { scheme, address })
}

/// The URL that was probably meant: what can be kept of `rest` is kept.
fn quoted_url(scheme: Scheme, rest: &str, port: u16) -> String {
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
    format!("\"{scheme}://{}\"", probably_meant(rest, port))
}

/// The nearest right `host:port`: without its brackets or port, an address is completed, and if nothing can
/// be kept, there is an example.
fn probably_meant(text: &str, port: u16) -> String {
    let (host, own_port) = text.rsplit_once(':').unwrap_or((text, ""));
    let own_port = own_port.parse().ok().filter(|port: &u16| *port > 0).unwrap_or(port);
    let bare = |host: &str| host.trim_matches(['[', ']']).to_owned();
    let in_brackets = |host: &str| if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let tries = [(bare(host), own_port), (bare(text), port)];
    let parsed =
        |(host, port): &(String, u16)| HostPort::parse(&format!("{}:{port}", in_brackets(host))).ok();
    tries.iter().find_map(parsed).map_or_else(|| format!("10.0.0.1:{port}"), |address| address.to_string())
}

/// A list of at least one endpoint, none of them twice.
pub(crate) fn endpoints(table: &mut Table<'_>, key: &'static str, port: u16, tls: bool) -> Vec<Endpoint> {
    let example = format!("[\"http://10.0.0.1:{port}\"]");
    let Some(value) = table.required(key, &example) else { return Vec::new() };
    let read = |item: &Value<'_>| item.parse(&example, |text| endpoint(text, port, tls, None));
    distinct(value, &example, read)
}

/// A list of at least one, none of them twice.
pub(crate) fn distinct<'a, T: PartialEq + ToString>(
    value: Value<'a>,
    example: &str,
    read: impl Fn(&Value<'a>) -> Option<T>,
) -> Vec<T> {
    let Some(items) = value.list(example) else { return Vec::new() };
    if items.is_empty() {
        value.error(format!("`{}` is empty", value.key), format!("write {} = {example}", value.key));
    }
    let mut list = Vec::new();
    for item in items {
        let Some(read) = read(&item) else { continue };
        if list.contains(&read) {
            item.error(format!("`{}` is there twice", read.to_string()), "remove one of the two");
        }
        list.push(read);
    }
    list
}

/// What a PEM file must hold.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Pem {
    Certificate,
    Key,
}

/// A PEM file that exists, can be read and holds what it should.
pub(crate) fn pem_file(table: &mut Table<'_>, key: &'static str, pem: Pem) -> Option<PathBuf> {
    let value = table.get(key)?;
    let path = value.cx.resolve(value.text("\"file.pem\"")?);
    let content = read_file(value, &path)?;
    let text = String::from_utf8_lossy(&content);
    let name = path.display();
    let has_certificate = text.contains("-----BEGIN CERTIFICATE-----");
    let has_key = text.contains("PRIVATE KEY-----");
    match pem {
        Pem::Certificate if !has_certificate => {
            let also = if has_key { ", only a private key" } else { "" };
            let help = "name a file with -----BEGIN CERTIFICATE----- in it";
            value.error(format!("{name} holds no certificate in PEM form{also}"), help);
        }
        Pem::Key if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") => {
            let help = format!("decrypt it: openssl pkey -in {name} -out plain.key");
            value.error(format!("the key in {name} is encrypted with a password"), help);
        }
        Pem::Key if !has_key => {
            let also = if has_certificate { ", only a certificate" } else { "" };
            let help = "name a file with -----BEGIN PRIVATE KEY----- in it";
            value.error(format!("{name} holds no private key in PEM form{also}"), help);
        }
        Pem::Certificate | Pem::Key => {}
    }
    Some(path)
}

/// The content of a file that the value names.
pub(crate) fn read_file(value: Value<'_>, path: &std::path::Path) -> Option<Vec<u8>> {
    match value.cx.host.read_file(path) {
        Ok(content) => Some(content),
        Err(error) => {
            let help = "name a file that exists and that the user of this process may read";
            value.error(format!("cannot read {}: {error}", path.display()), help);
            None
        }
    }
}

/// `cert` and `key`: both or none.
pub(crate) fn cert_key(table: &mut Table<'_>) -> Option<(PathBuf, PathBuf)> {
    let has = |table: &mut Table<'_>, key| table.get(key).map(|value| value.span());
    let (cert_span, key_span) = (has(table, "cert"), has(table, "key"));
    let cert = pem_file(table, "cert", Pem::Certificate);
    let key = pem_file(table, "key", Pem::Key);
    match (cert_span, key_span) {
        (Some(span), None) => table.cx.error(&span, "`cert` without `key`", "write key = \"client.key\" too"),
        (None, Some(span)) => {
            table.cx.error(&span, "`key` without `cert`", "write cert = \"client.pem\" too");
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    cert.zip(key)
}

/// `tls = { ... }` where we are the client.
pub(crate) fn client_tls(
    table: &mut Table<'_>,
    key: &'static str,
    schema: &'static str,
) -> Option<(ClientTls, Span)> {
    let value = table.get(key)?;
    let title = format!("`{key}` of {}", table.title());
    let mut tls = value.table(schema, title, "{ ca = \"ca.pem\" }")?;
    let read = ClientTls {
        ca: pem_file(&mut tls, "ca", Pem::Certificate),
        cert_key: cert_key(&mut tls),
        server_name: tls.text("server_name", "\"etcd.example.com\""),
        verify: tls.choice("verify", Verify::Full),
    };
    if let (Verify::None, Some(_), Some(ca)) = (read.verify, &read.ca, tls.get("ca")) {
        ca.error(
            "`ca` without a check of the certificate",
            "remove ca, or write verify = \"ca\" or \"full\"",
        );
    }
    tls.finish();
    Some((read, value.span()))
}

/// Reports `tls` beside endpoints that do not use it.
pub(crate) fn check_tls_used(cx: &Context<'_>, tls: Option<&(ClientTls, Span)>, endpoints: &[Endpoint]) {
    let Some((_, span)) = tls else { return };
    if let Some(plain) = endpoints.iter().find(|endpoint| endpoint.scheme == Scheme::Http) {
        let message = format!("`tls` is given, but `{plain}` is not encrypted");
        cx.error(span, message, format!("write \"https://{}\", or remove tls", plain.address));
    }
}

/// A secret from `FILE_KEY` or `ENV_KEY`, read now. The span is that of the key that was written.
pub(crate) fn secret(
    table: &mut Table<'_>,
    file_key: &'static str,
    env_key: Option<&'static str>,
) -> (Option<Secret>, Option<Span>) {
    let file = table.get(file_key);
    let variable = env_key.and_then(|key| table.get(key));
    let (value, source) = match (file, variable) {
        (None, None) => return (None, None),
        (Some(value), None) => {
            let path = value.text("\"/etc/pointsman/secret\"").map(|path| value.cx.resolve(path));
            (value, path.map(SecretSource::File))
        }
        (None, Some(value)) => {
            let name = value.text("\"POINTSMAN_SECRET\"").map(str::to_owned);
            (value, name.map(SecretSource::Variable))
        }
        (Some(file), Some(variable)) => {
            let message = format!("`{}` and `{}` at once", file.key, variable.key);
            variable.error(message, "write one of the two");
            return (None, Some(file.span()));
        }
    };
    let secret = source.and_then(|source| match source.read(value.cx.host) {
        Ok(secret) => Some(secret),
        Err(error) => {
            let help = match source {
                SecretSource::File(_) => {
                    "name a file that the user of this process may read, with the secret on its only line"
                }
                SecretSource::Variable(_) => "set it in the environment of the process",
            };
            value.error(error.to_string(), help);
            None
        }
    });
    (secret, Some(value.span()))
}

/// A user with its password: both or none.
pub(crate) fn credentials(table: &mut Table<'_>, user_key: &'static str) -> Option<Credentials> {
    let user_span = table.get(user_key).map(|value| value.span());
    let user = table.text(user_key, "\"pointsman\"");
    let (password, password_span) = secret(table, "password_file", Some("password_env"));
    match (user_span, password_span) {
        (Some(span), None) => {
            let help = "write password_file = \"/etc/pointsman/password\" too";
            table.cx.error(&span, format!("`{user_key}` without a password"), help);
        }
        (None, Some(span)) => {
            let message = format!("a password without `{user_key}`");
            table.cx.error(&span, message, format!("write {user_key} = \"...\" too"));
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    user.zip(password).map(|(user, password)| Credentials { user, password })
}

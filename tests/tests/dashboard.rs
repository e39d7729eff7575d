//! The dashboard in a real browser, on a real cluster. Screenshots go to `target/screenshots`.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::balancer::{Balancer, SOON};
use pointsman_tests::browser::{Browser, Scheme};
use pointsman_tests::shared::alone;
use pointsman_tests::sql::{self, Client};
use pointsman_tests::{Cluster, tools, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

async fn screenshot(browser: &Browser, name: &str) -> Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| tools::repository().join("target"), PathBuf::from);
    for (scheme, word) in [(Scheme::Light, "light"), (Scheme::Dark, "dark")] {
        browser.show_as(scheme, 1440, 1000).await?;
        browser.screenshot(&target.join(format!("screenshots/{name}-{word}.png"))).await?;
    }
    Ok(())
}

/// A mark in the page's memory: it is gone if anybody loads the page anew.
async fn mark(browser: &Browser) -> Result<()> {
    browser.evaluate("window.seen = 1").await.map(drop)
}

async fn not_reloaded(browser: &Browser) -> Result<()> {
    ensure!(browser.evaluate("return window.seen").await? == 1, "the page was loaded anew");
    Ok(())
}

async fn clean_so_far(browser: &Browser, balancer: &Balancer) -> Result<()> {
    let console = browser.console().await?;
    ensure!(console.is_empty(), "in the console: {console:?}");
    let home = format!("http://{}/", balancer.admin());
    let requests = browser.requests().await?;
    ensure!(requests.len() > 3, "nothing was asked: {requests:?}");
    let foreign: Vec<_> = requests.iter().filter(|url| !url.starts_with(&home)).collect();
    ensure!(foreign.is_empty(), "asked of others: {foreign:?}");
    Ok(())
}

#[test]
fn the_dashboard_shows_what_happens() -> Result<()> {
    alone(async |cluster| {
        let mut balancer = Balancer::ready(cluster).await?;
        let browser = Browser::start(&cluster.site).await?;
        let (old, new) = (cluster.leader().await?, cluster.a_replica().await?);
        browser.open(&format!("http://{}/", balancer.admin())).await?;
        mark(&browser).await?;
        let mut sessions = Vec::new();
        for address in [balancer.primary(), balancer.primary(), balancer.replicas()] {
            sessions.push(Client::connect(address, SOON).await?);
        }
        the_state(&browser, &balancer, cluster, &old).await?;
        screenshot(&browser, "steady").await?;
        clean_so_far(&browser, &balancer).await?;

        a_switchover(&browser, &balancer, cluster, &new).await?;
        a_hostile_member(&browser, cluster).await?;
        an_operator(&browser, &balancer, cluster).await?;
        not_reloaded(&browser).await?;
        clean_so_far(&browser, &balancer).await?;
        browser.show_as(Scheme::Light, 420, 900).await?;
        screenshot_narrow(&browser).await?;
        let narrow = browser.evaluate("return document.documentElement.scrollWidth").await?;
        ensure!(narrow.as_u64() <= Some(420), "on a telephone the page is {narrow} wide");
        the_end(&browser, &mut balancer, cluster).await?;
        not_reloaded(&browser).await
    })
}

async fn screenshot_narrow(browser: &Browser) -> Result<()> {
    browser.screenshot(&tools::repository().join("target/screenshots/narrow.png")).await
}

async fn the_state(browser: &Browser, balancer: &Balancer, cluster: &Cluster, leader: &str) -> Result<()> {
    let endpoint = cluster.etcd.endpoints();
    browser.wait_text("#process", &["lb1", "ready", "sessions 3"]).await?;
    browser.wait_text("#link", &["live"]).await?;
    let (primary, replicas) = (balancer.primary().to_string(), balancer.replicas().to_string());
    let address = cluster.leader_address().await?.to_string();
    let wanted = [
        "cluster on etcd",
        leader,
        "confirmed",
        &address,
        "source",
        "alive",
        "last sign of life",
        endpoint.first().context("etcd")?,
        "2 members",
        "2 in use",
        "primary leader",
        "replica",
        &primary,
        &replicas,
        "open",
    ];
    let text = browser.wait_text("#clusters", &wanted).await?;
    for member in cluster.members() {
        assert!(text.contains(member.name()), "{text}");
    }
    browser.wait_text("#timeline", &[&format!("{leader} is confirmed as primary")]).await?;
    let title = browser.evaluate("return document.title").await?;
    assert_eq!(title, json!(format!("{leader} · lb1 · Pointsman")));
    // The age of the source's last sign of life moves.
    let ages = async || {
        browser
            .evaluate("return [...document.querySelectorAll('.facts b')].map((b) => b.innerText).join()")
            .await
    };
    let before = ages().await?;
    wait::until("the ages to move", SOON, async || {
        ensure!(ages().await? != before, "{before}");
        Ok(())
    })
    .await
}

async fn a_switchover(browser: &Browser, balancer: &Balancer, cluster: &Cluster, new: &str) -> Result<()> {
    cluster.switchover(new).await?;
    browser.wait_text(".summary", &[new, "confirmed"]).await?;
    browser
        .wait_text(
            "#timeline",
            &[&format!("{new} is confirmed as primary"), &format!("{new} is the leader now")],
        )
        .await?;
    wait::until("the title to name the new primary", SOON, async || {
        let title = browser.evaluate("return document.title").await?;
        ensure!(title == format!("{new} · lb1 · Pointsman"), "{title}");
        Ok(())
    })
    .await?;
    sql::who(balancer.primary(), SOON).await?;
    screenshot(browser, "switchover").await
}

/// A member's name is anybody's who may write to the store.
async fn a_hostile_member(browser: &Browser, cluster: &Cluster) -> Result<()> {
    let name = r#"<img src=x onerror="window.seen=2"><b>bold"#;
    let key = format!("members/{name}");
    let value = json!({
        "conn_url": "postgres://127.0.0.1:1/postgres", "api_url": "http://127.0.0.1:1/patroni", "state": "running",
        "role": "replica", "version": "4.0.0", "xlog_location": 1, "timeline": 1, "tags": { "x": "<script>window.seen=3</script>" },
    });
    cluster.put_key(&key, &value.to_string()).await?;
    cluster.put_key("sync", r#"{"leader": "<i>half</i>"#).await?;
    let shown = async {
        browser.wait_text("#clusters", &[name, "not understood:"]).await?;
        ensure!(
            browser
                .evaluate(
                    "return document.querySelectorAll('#clusters img, #clusters i, #timeline img').length"
                )
                .await?
                == 0,
            "it is taken for HTML"
        );
        screenshot(browser, "hostile").await
    };
    let shown = shown.await;
    cluster.etcd.delete(&format!("/service/main/{key}")).await?;
    cluster.etcd.delete("/service/main/sync").await?;
    shown
}

async fn an_operator(browser: &Browser, balancer: &Balancer, cluster: &Cluster) -> Result<()> {
    let (leader, replica) = (cluster.leader().await?, cluster.a_replica().await?);
    balancer.ask(&["maint", &format!("main/{leader}")]).await?;
    balancer.ask(&["drain", &format!("main/{replica}")]).await?;
    let reload = balancer.reload(&format!("{}[nonsense]\n", balancer.configuration(cluster))).await?;
    assert_eq!(reload.get("ok"), Some(&json!(false)));
    browser
        .wait_text(
            "#clusters",
            &["taken out", "drained by an operator", "the last reload failed", "nonsense", "held"],
        )
        .await?;
    screenshot(browser, "operator").await?;
    balancer.ask(&["ready", &format!("main/{leader}")]).await?;
    balancer.ask(&["ready", &format!("main/{replica}")]).await?;
    assert_eq!(balancer.reload(&balancer.configuration(cluster)).await?.get("text"), Some(&Value::from("")));
    wait::until("the alarm to be gone", SOON, async || {
        let text = browser.text("#clusters").await?;
        ensure!(!text.contains("reload failed"), "{text}");
        Ok(())
    })
    .await
}

async fn the_end(browser: &Browser, balancer: &mut Balancer, cluster: &Cluster) -> Result<()> {
    balancer.signal(Signal::KILL)?;
    balancer.ended(SOON).await?;
    browser.wait_text("#lost", &["has not answered for", "what you see is as old as that"]).await?;
    browser.wait_text("#link", &["no answer"]).await?;
    let title = browser.evaluate("return document.title").await?;
    assert_eq!(title, "⚠ no answer · Pointsman");
    screenshot(browser, "lost").await?;
    balancer.start(&cluster.site)?;
    balancer.wait_ready().await?;
    browser.wait_text("#link", &["live"]).await?;
    let hidden = browser.evaluate("return document.getElementById('lost').hidden").await?;
    assert_eq!(hidden, true);
    browser.wait_text("#timeline", &["is confirmed as primary"]).await.map(drop)
}

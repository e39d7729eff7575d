//! Bar charts as SVG, written by hand: nothing to install, and a browser shows them.

use std::fmt::Write as _;

use crate::comparison::significant;
use crate::measure::statistics::Spread;
use crate::peers::Peer;

/// A chart within a plot.
#[derive(Debug)]
pub struct Panel {
    /// What was done.
    pub title: String,
    /// The unit of the numbers.
    pub unit: String,
    /// Who, and how much.
    pub bars: Vec<(Peer, Spread)>,
}

const COLUMN: usize = 490;
const LABEL: usize = 136;
const BAR: usize = 250;
const LINE: usize = 17;
const HEAD: usize = 60;
const PANEL_HEAD: usize = 34;
const PANEL_FOOT: usize = 14;
const MARGIN: usize = 20;

/// A plot of panels in two columns.
pub fn render(title: &str, note: &str, panels: &[Panel]) -> String {
    let height_of = |panel: &Panel| PANEL_HEAD + panel.bars.len() * LINE + PANEL_FOOT;
    let mut columns = [HEAD, HEAD];
    let mut body = String::new();
    for panel in panels {
        // Into the shorter column.
        let index = usize::from(columns[1] < columns[0]);
        draw(&mut body, panel, MARGIN + index * COLUMN, columns[index]);
        columns[index] += height_of(panel);
    }
    let width = 2 * MARGIN + 2 * COLUMN;
    let height = columns.into_iter().max().unwrap_or(HEAD) + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"#222\">
<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>
<text x=\"{MARGIN}\" y=\"26\" font-size=\"17\" font-weight=\"600\">{}</text>
<text x=\"{MARGIN}\" y=\"44\" fill=\"#666\">{}</text>
{body}</svg>
",
        escape(title),
        escape(note)
    )
}

fn draw(body: &mut String, panel: &Panel, left: usize, top: usize) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        body,
        "<text x=\"{left}\" y=\"{}\" font-weight=\"600\">{} <tspan fill=\"#666\" font-weight=\"400\">{}</tspan></text>",
        top + 20,
        escape(&panel.title),
        escape(&panel.unit)
    );
    let longest = panel.bars.iter().map(|(_, spread)| spread.max).fold(0.0, f64::max);
    for (index, (peer, spread)) in panel.bars.iter().enumerate() {
        let y = top + PANEL_HEAD + index * LINE;
        let x = left + LABEL;
        let scale = |number: f64| if longest > 0.0 { number / longest * BAR as f64 } else { 0.0 };
        let (width, low, high) = (scale(spread.median), scale(spread.min), scale(spread.max));
        let middle = y as f64 + 6.5;
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
<rect x=\"{x}\" y=\"{y}\" width=\"{width:.1}\" height=\"13\" fill=\"{}\"/>\
<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#222\" stroke-width=\"1.2\"/>\
<text x=\"{:.1}\" y=\"{}\">{}</text>",
            x - 6,
            y + 11,
            peer.name(),
            colour(*peer),
            x as f64 + low,
            x as f64 + high,
            x as f64 + high.max(width) + 6.0,
            y + 11,
            significant(spread.median)
        );
    }
}

fn colour(peer: Peer) -> &'static str {
    match peer {
        Peer::Pointsman(crate::peers::Engine::Epoll) => "#1b7f5c",
        Peer::Pointsman(crate::peers::Engine::IoUring) => "#46b38a",
        Peer::HaProxy(crate::peers::Splice::Off) => "#4a78b5",
        Peer::HaProxy(_) => "#8fb1dc",
        Peer::Direct | Peer::Nftables => "#d9d9d9",
        Peer::Nginx | Peer::PgBouncer | Peer::Envoy => "#a9a9b3",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::Splice;

    #[test]
    fn a_plot_has_a_bar_for_each_and_is_closed() {
        let bars = vec![
            (Peer::Direct, Spread::of([2.0]).unwrap()),
            (Peer::HaProxy(Splice::Off), Spread::of([1.0, 3.0, 4.0]).unwrap()),
        ];
        let panel = Panel { title: "a < b".to_owned(), unit: "µs & more".to_owned(), bars };
        let text = render("Title", "Note", &[panel]);
        assert_eq!(text.matches("<rect").count(), 3, "the ground and two bars");
        assert!(
            text.contains("width=\"250.0\"") || text.contains("width=\"187.5\""),
            "3 of 4 is three quarters"
        );
        assert!(text.contains("a &lt; b") && text.contains("&amp; more"));
        assert_eq!(text.matches("<text").count(), text.matches("</text>").count());
        assert!(text.trim_end().ends_with("</svg>"));
    }
}

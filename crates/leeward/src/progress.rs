//! Progress, as the engine tells it: a bar on a terminal, a line every few seconds elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use leeward_engine::event::{Event, Phase};

use crate::args::{Global, ProgressMode};
use crate::output;
use crate::units;

/// Nobody needs to be told of what is over at once.
const FIRST_LINE_AFTER: Duration = Duration::from_secs(2);
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows what the engine does.
pub struct Progress {
    way: Way,
    quiet: bool,
    verbose: bool,
    state: Mutex<State>,
    done: AtomicU64,
}

enum Way {
    Bar(ProgressBar),
    Lines,
    Nothing,
}

struct State {
    phase: Phase,
    total: u64,
    began: Instant,
    next_line: Instant,
}

impl Progress {
    pub fn new(global: &Global) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let way = match global.progress {
            _ if global.quiet => Way::Nothing,
            ProgressMode::None => Way::Nothing,
            ProgressMode::Auto if terminal => Way::Bar(bar()),
            ProgressMode::Auto | ProgressMode::Plain => Way::Lines,
        };
        let now = Instant::now();
        let state = State {
            phase: Phase::Preparing,
            total: 0,
            began: now,
            next_line: now + FIRST_LINE_AFTER,
        };
        Self {
            way,
            quiet: global.quiet,
            verbose: global.verbose && !global.quiet,
            state: Mutex::new(state),
            done: AtomicU64::new(0),
        }
    }

    /// Takes one piece of news.
    pub fn event(&self, event: Event<'_>) {
        match event {
            Event::Notice(text) => self.notice(&text),
            Event::Phase(phase) => self.phase(phase),
            Event::Total(total) => self.total(total),
            Event::Advanced(bytes) => self.advanced(bytes),
            Event::At(path) => {
                if let Way::Bar(bar) = &self.way {
                    bar.set_message(shortened(&output::escaped(path)));
                }
            }
            Event::Waiting { what, left } => self.waiting(what, left),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.tell_step();
        if let Way::Bar(bar) = &self.way {
            bar.finish_and_clear();
        }
    }

    fn notice(&self, text: &str) {
        if self.quiet {
            return;
        }
        let text = output::escaped(text);
        match &self.way {
            Way::Bar(bar) => bar.suspend(|| output::say(&text)),
            Way::Lines | Way::Nothing => output::say(&text),
        }
    }

    fn waiting(&self, what: &str, left: Duration) {
        let text = format!("waiting for {what}, {} s left", left.as_secs_f64().ceil());
        match &self.way {
            Way::Bar(bar) => bar.set_message(text),
            Way::Lines => {
                if let Ok(mut state) = self.state.lock()
                    && state.next_line <= Instant::now()
                {
                    state.next_line = Instant::now() + LINE_EVERY;
                    output::say(&text);
                }
            }
            Way::Nothing => {}
        }
    }

    fn phase(&self, phase: Phase) {
        let now = Instant::now();
        self.done.store(0, Ordering::Relaxed);
        if self.state.lock().is_ok_and(|state| state.phase != phase) {
            self.tell_step();
        }
        if let Ok(mut state) = self.state.lock() {
            *state = State {
                phase,
                total: 0,
                began: now,
                next_line: now + FIRST_LINE_AFTER,
            };
        }
        if let Way::Bar(bar) = &self.way {
            bar.reset();
            bar.set_length(0);
            bar.set_style(style(false));
            bar.set_prefix(doing(phase));
            bar.set_message("");
        }
    }

    /// With `--verbose`: the step that ends now, and how long it took.
    fn tell_step(&self) {
        if !self.verbose {
            return;
        }
        let Ok((phase, took)) = self
            .state
            .lock()
            .map(|state| (state.phase, state.began.elapsed()))
        else {
            return;
        };
        self.notice(&format!(
            "  {:<30} {:>10}",
            doing(phase),
            units::duration(took)
        ));
    }

    fn total(&self, total: u64) {
        if let Ok(mut state) = self.state.lock() {
            state.total = total;
        }
        if let Way::Bar(bar) = &self.way {
            bar.set_length(total);
            bar.set_style(style(true));
        }
    }

    fn advanced(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match &self.way {
            Way::Bar(bar) => bar.inc(bytes),
            Way::Nothing => {}
            Way::Lines => {
                let Ok(mut state) = self.state.try_lock() else {
                    return;
                };
                let now = Instant::now();
                if now >= state.next_line {
                    state.next_line = now + LINE_EVERY;
                    output::say(&line(&state, done, now));
                }
            }
        }
    }
}

fn line(state: &State, done: u64, now: Instant) -> String {
    let took = now - state.began;
    let rate = units::rate(done, took);
    if state.total <= done {
        return format!("{}: {}, {rate}", doing(state.phase), units::bytes(done));
    }
    let left = took.mul_f64((state.total - done) as f64 / done.max(1) as f64);
    format!(
        "{}: {} of {} ({} %), {rate}, {} left",
        doing(state.phase),
        units::bytes(done),
        units::bytes(state.total),
        done * 100 / state.total,
        units::duration(left)
    )
}

fn doing(phase: Phase) -> &'static str {
    match phase {
        Phase::Preparing => "preparing",
        Phase::Starting => "waiting for the restartpoint",
        Phase::Copying => "copying",
        Phase::StoringWal => "storing WAL",
        Phase::Committing => "committing",
        Phase::Restoring => "restoring",
        Phase::Syncing => "syncing",
        Phase::Exporting => "exporting",
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn style(total_known: bool) -> ProgressStyle {
    let template = if total_known {
        "{prefix} [{bar:28}] {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left  {wide_msg:.dim}"
    } else {
        "{spinner} {prefix}  {wide_msg:.dim}"
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// The end of a path says more than its beginning.
fn shortened(path: &str) -> String {
    const LONGEST: usize = 40;
    let count = path.chars().count();
    if count <= LONGEST {
        path.to_owned()
    } else {
        format!(
            "…{}",
            path.chars().skip(count - LONGEST + 1).collect::<String>()
        )
    }
}

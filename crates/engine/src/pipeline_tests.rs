//! Every stage fails in turn, while the others wait for it.

use std::sync::mpsc;
use std::time::Duration;

use super::*;

/// Long enough for any of this, which takes no time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns what `work` returns or panics with; a hang is a failure of the test.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> std::thread::Result<T> {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(work));
        let _ = done.send(result);
    });
    ended.recv_timeout(PATIENCE).expect("it ends")
}

/// The way a stage ends after a few items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Goes,
    Fails,
    Panics,
}

impl Way {
    fn go(self, stage: &str) -> StageResult<()> {
        match self {
            Way::Goes => Ok(()),
            Way::Fails => Err(Error::failed(format!("{stage} failed")).into()),
            Way::Panics => panic!("{stage} panicked"),
        }
    }
}

const ITEMS: u32 = 1_000;

/// Three stages and the body behind narrow channels, with a bystander that waits for the end.
fn sum(ways: [Way; 4], at: u32) -> Result<u32> {
    let [feeding, doubling, adding, ending] = ways;
    run(|pipeline| {
        let (items, fed) = pipeline.channel(1);
        let (doubles, doubled) = pipeline.channel(0);
        let (sums, total) = pipeline.channel(0);
        let (alive, bystanding) = pipeline.channel::<()>(0);
        pipeline.spawn("feed", move || {
            for item in 0..ITEMS {
                if item == at {
                    feeding.go("feed")?;
                }
                items.send(item)?;
            }
            Ok(())
        })?;
        for _ in 0..2 {
            let (fed, doubles) = (fed.clone(), doubles.clone());
            pipeline.spawn("double", move || {
                while let Some(item) = fed.recv()? {
                    if item == at {
                        doubling.go("double")?;
                    }
                    doubles.send(item * 2)?;
                }
                Ok(())
            })?;
        }
        drop((fed, doubles));
        let adder = pipeline.spawn("add", move || {
            let mut sum = 0;
            while let Some(item) = doubled.recv()? {
                if item == at * 2 {
                    adding.go("add")?;
                }
                sum += item;
                sums.send(sum)?;
            }
            Ok(sum)
        })?;
        let bystander = pipeline.spawn("bystander", move || {
            assert_eq!(bystanding.recv()?, None);
            Ok(())
        })?;
        let mut last = 0;
        let mut seen = 0;
        while let Some(sum) = total.recv()? {
            if seen == at {
                ending.go("end")?;
            }
            seen += 1;
            last = sum;
        }
        assert_eq!(adder.join()?, last);
        drop(alive);
        bystander.join()?;
        Ok(last)
    })
}

#[test]
fn the_first_failure_of_any_stage_ends_all_of_them() {
    let sound = in_time(|| sum([Way::Goes; 4], 0)).expect("no panic");
    assert_eq!(sound.expect("no failure"), ITEMS * (ITEMS - 1));
    let stages = ["feed", "double", "add", "end"];
    for at in [0, 1, 500, ITEMS - 1] {
        for (place, stage) in stages.into_iter().enumerate() {
            let mut ways = [Way::Goes; 4];
            ways[place] = Way::Fails;
            let failed = in_time(move || sum(ways, at)).expect("no panic");
            let error = failed.expect_err("a failure");
            assert_eq!(error.to_string(), format!("{stage} failed"));

            ways[place] = Way::Panics;
            let panic = in_time(move || sum(ways, at)).expect_err("a panic");
            let text = panic.downcast_ref::<String>().map(String::as_str);
            assert_eq!(text, Some(&*format!("{stage} panicked")));
        }
    }
}

#[test]
fn of_several_failures_one_is_told() {
    for _ in 0..50 {
        let failed = in_time(|| sum([Way::Fails; 4], 3)).expect("no panic");
        let error = failed.expect_err("a failure").to_string();
        assert!(error.ends_with(" failed"), "{error}");
    }
}

#[test]
fn a_failed_sender_is_not_taken_for_the_end() {
    for _ in 0..200 {
        let failed = in_time(|| {
            run(|pipeline| {
                let (items, fed) = pipeline.channel::<u32>(4);
                pipeline.spawn("feed", move || {
                    items.send(1)?;
                    Err::<(), _>(Error::failed("no more").into())
                })?;
                while fed.recv()?.is_some() {}
                Err::<(), _>(Error::failed("the end was told").into())
            })
        });
        let error = failed.expect("no panic").expect_err("a failure");
        assert_eq!(error.to_string(), "no more");
    }
}

#[test]
fn work_that_is_cut_off_is_no_success() {
    let cut_off = in_time(|| {
        run(|pipeline| {
            let (items, fed) = pipeline.channel(0);
            pipeline.spawn("feed", move || {
                items.send(1)?;
                items.send(2)
            })?;
            assert_eq!(fed.recv()?, Some(1));
            Ok(())
        })
    });
    assert!(cut_off.expect("no panic").is_err());
}

#[test]
fn a_wait_ends_in_time() {
    let waited = in_time(|| {
        run(|pipeline| {
            let (items, fed) = pipeline.channel(1);
            let now = Instant::now();
            assert_eq!(fed.recv_deadline(now)?, Next::Nothing);
            items.send(1)?;
            assert_eq!(fed.recv_deadline(now)?, Next::Item(1));
            drop(items);
            assert_eq!(fed.recv_deadline(now + PATIENCE)?, Next::End);
            Ok(())
        })
    });
    waited.expect("no panic").expect("no failure");
}

//! `bench`: measures the backends, and what else could be used in their place, on this machine.

mod process;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use batchyard::{
    Error,
    bench::{
        contestant::Contestant,
        plan::Plan,
        render::{self, Figures},
        report::Report,
        workload::{self, Part, WORKLOADS, Workload},
    },
};
use clap::{Args, ValueHint};

use self::process::Processes;
use super::{
    args::{count, own_program},
    child::die_with_parent,
    exit::{Exit, Failure},
    output::{Steps, print, print_json, say},
    scratch,
    stop::Stop,
    table::Table,
};

/// Options of `bench`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: batchyard bench --quick --workloads enqueue,drain\n\
    Example: batchyard bench --dir /mnt/disk --markdown --svg bench.svg > bench.md\n\
    Everything it makes lies in a folder of its own below --dir and is removed at the end. In full, with every \
    backend, it takes hours and some 40 GB; --backends, --workloads and --scale make it shorter. Redis is measured where \
    redis-server is installed (feature redis), other embedded stores with the feature bench-peers."
)]
pub(crate) struct BenchArgs {
    /// The folder on the disk to measure
    #[arg(long, value_name = "DIR", default_value = ".", value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// Only these, such as memory,sled,raw [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    backends: Vec<String>,
    /// Only these, such as enqueue,drain [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = named_workload)]
    workloads: Vec<Workload>,
    /// Only the loads of enqueue that begin so, such as '64 producers' or 'bulk'; may be repeated
    #[arg(long = "load", value_name = "NAME", value_parser = named_load)]
    loads: Vec<String>,
    /// How many rounds, interleaved over the backends
    #[arg(long, value_name = "N", default_value = "5", value_parser = count)]
    rounds: std::num::NonZeroU32,
    /// How long each measurement of pushes takes [default: 1]
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    seconds: Option<f64>,
    /// What part of the full counts to use, such as 0.1 [default: 1]
    #[arg(long, value_name = "FACTOR", value_parser = positive)]
    scale: Option<f64>,
    /// The most requests queued to look for the oldest of [default: 10000000]
    #[arg(long, value_name = "N", value_parser = count)]
    max_depth: Option<std::num::NonZeroU32>,
    /// How many requests are queued while readers read them beside pushes [default: 100000]
    #[arg(long, value_name = "N", value_parser = count)]
    depth: Option<std::num::NonZeroU32>,
    /// A first impression: 0.2 seconds, a hundredth of the counts, 100,000 queued at most
    #[arg(long)]
    quick: bool,
    /// Print a line of JSON
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print Markdown
    #[arg(long)]
    markdown: bool,
    /// Also draw throughput, latency and the oldest's age into this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    svg: Option<PathBuf>,
    /// Measure nothing: show what an earlier run printed with --json
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    from: Option<PathBuf>,
    /// What the program is started again for: one measurement
    #[arg(long, hide = true, value_name = "JSON")]
    part: Option<String>,
    /// What the program is started again for: to be killed while it pushes
    #[arg(long, hide = true, value_name = "JSON")]
    fill: Option<String>,
}

/// Measures, and prints what came out.
pub(super) async fn bench(args: BenchArgs) -> Result<Exit, Failure> {
    if let Some(part) = &args.fill {
        die_with_parent();
        workload::fill(&process::parse(part)?).await?;
        return Ok(Exit::Ok);
    }
    if let Some(part) = &args.part {
        die_with_parent();
        let part = process::parse(part)?;
        print_json(&workload::run(&part).await?)?;
        return Ok(Exit::Ok);
    }
    if let Some(path) = &args.from {
        return show(&args, &read(path)?);
    }
    let mut stop = Stop::new()?;
    // Dropped however this ends, and with it everything that was made.
    let folder = scratch::folder(&args.dir, "batchyard-bench-")?;
    let plan = plan(&args, folder.path())?;
    say(&format!("measuring in {}", folder.path().display()));
    let report = tokio::select! {
        report = measure(plan) => report?,
        exit = stop.asked() => {
            scratch::remove(&folder.keep())?;
            return Ok(exit);
        }
    };
    scratch::remove(&folder.keep())?;
    show(&args, &report)
}

fn read(path: &Path) -> Result<Report, Failure> {
    let text = fs::read(path).map_err(|error| Failure::io(path.display(), &error))?;
    serde_json::from_slice(&text).map_err(|error| {
        let text = format!(
            "{} is not what `bench --json` prints: {error}",
            path.display()
        );
        Failure::new(Exit::Usage, text)
    })
}

fn named_load(name: &str) -> Result<String, String> {
    let loads = (0..Workload::Enqueue.pieces()).filter_map(|piece| Workload::Enqueue.load(piece));
    let loads: Vec<String> = loads.collect();
    if loads.iter().any(|load| load.starts_with(name)) {
        return Ok(name.to_owned());
    }
    Err(format!("there are: {}", loads.join("; ")))
}

fn plan(args: &BenchArgs, folder: &Path) -> Result<Plan, Failure> {
    let mut plan = Plan::full(folder.to_owned());
    if args.quick {
        (plan.seconds, plan.scale, plan.most) = QUICK;
    }
    plan.loads.clone_from(&args.loads);
    plan.rounds = args.rounds.get();
    plan.seconds = args.seconds.unwrap_or(plan.seconds);
    plan.scale = args.scale.unwrap_or(plan.scale);
    plan.most = args.max_depth.map_or(plan.most, |most| most.get().into());
    plan.depth = args.depth.map_or(plan.depth, |depth| depth.get().into());
    plan.program = Some(own_program()?);
    if !args.workloads.is_empty() {
        plan.workloads.clone_from(&args.workloads);
    }
    if !args.backends.is_empty() {
        let named = args.backends.iter().map(|name| Contestant::named(name));
        plan.contestants = named.collect::<Result<_, _>>()?;
    }
    let plan = plan.without_missing();
    if plan.parts().is_empty() {
        let left_out = plan.left_out.join("; ");
        let text = "nothing to measure: none of these backends takes part in these workloads";
        let text = if left_out.is_empty() {
            text.to_owned()
        } else {
            left_out
        };
        return Err(Failure::new(Exit::NotFound, text));
    }
    Ok(plan)
}

async fn measure(plan: Plan) -> Result<Report, Failure> {
    let steps = Steps::start();
    let processes = Processes::new()?;
    let run = async |part: &Part| {
        let run = tokio::time::timeout(PATIENCE, processes.run(part)).await;
        run.unwrap_or_else(|_| Err(Error::internal("it took more than an hour, and was ended")))
    };
    let step = |done, of, part: &Part| {
        let what = format!("{}, {}", part.workload.name(), part.contestant);
        let line = format!("{done} of {of} measured; next: {what}");
        steps.set(done as u64, of as u64, what, line);
    };
    Ok(plan.measure(run, step).await?)
}

fn show(args: &BenchArgs, report: &Report) -> Result<Exit, Failure> {
    if let Some(path) = &args.svg {
        fs::write(path, render::svg(report))
            .map_err(|error| Failure::io(path.display(), &error))?;
    }
    if args.json {
        print_json(report)?;
    } else if args.markdown {
        print(render::markdown(report).as_bytes())?;
    } else {
        print(text(report).as_bytes())?;
    }
    for failed in &report.failed {
        say(&format!("failed: {failed}"));
    }
    Ok(match report.failed.is_empty() {
        true => Exit::Ok,
        false if report.rows.is_empty() => Exit::Failure,
        false => Exit::Partial,
    })
}

/// The report as tables.
fn text(report: &Report) -> String {
    let mut table = Table::new(&["contestant", "an answered push survives"], 2);
    for contestant in &report.contestants {
        table.row(vec![contestant.name.clone(), render::survives(contestant)]);
    }
    let mut text = format!("{}\n\n{}", render::about(report), table.text());
    for Figures {
        name,
        headings,
        rows,
    } in render::figures(report)
    {
        let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
        let mut table = Table::new(&headings, render::WORDS);
        for row in rows {
            table.row(row);
        }
        text = format!("{text}\n{name}\n{}", table.text());
    }
    text.push('\n');
    for remark in render::remarks(report) {
        text = format!("{text}{remark}\n");
    }
    text
}

fn named_workload(name: &str) -> Result<Workload, String> {
    let found = WORKLOADS.iter().find(|(_, known)| *known == name);
    found.map(|(workload, _)| *workload).ok_or_else(|| {
        let names: Vec<_> = WORKLOADS.iter().map(|(_, name)| *name).collect();
        format!("there are {}", names.join(", "))
    })
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    let number = number.filter(|number| *number > 0.0);
    number.ok_or_else(|| "a number above 0 is needed, such as 0.5".into())
}

/// Seconds, scale, and the most queued.
const QUICK: (f64, f64, u64) = (0.2, 0.01, 100_000);
/// A measurement that takes longer will never end.
const PATIENCE: Duration = Duration::from_secs(3600);

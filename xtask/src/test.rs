//! `cargo xtask test`: the layers, one after the other, and a closing table.

mod layer;
mod lint;
mod report;
mod tally;

use std::mem;
use std::process::ExitCode;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::Result;

use crate::build::{self, Build};
use crate::image::Image;
use crate::process::step;
use crate::{cluster, setup};

pub(crate) use layer::{Layer, Program, cargo_test, environment, libtest};
use report::Report;
pub(crate) use tally::Tally;

/// Run the tests, all layers that belong to CI unless some are named
///
/// Installs what the layers need, builds, runs each layer and ends with a table of layers and, as the last line, the sum:
/// `N passed, N failed`. The exit status is 0 only if nothing failed. Layers that touch the kernel need root; they work
/// inside network namespaces of their own and leave nothing behind.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask test
          Everything that CI runs
  cargo xtask test lint unit
          What needs no privilege
  cargo xtask test netns -- --nocapture cni_02
          The tests whose name contains cni_02, with their output")]
pub(crate) struct Test {
    /// Layers to run, in the order of their cost
    #[arg(value_enum, value_name = "LAYER")]
    layers: Vec<Layer>,
    /// Passed to each test program: a part of a test's name, --nocapture, --test-threads=1
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<String>,
}

impl Test {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let layers = self.chosen();
        let mut report = Report::default();
        let started = Instant::now();
        if let Err(error) = prepare(&layers) {
            eprintln!("error: {error:#}");
            report.add(
                "setup and build",
                Tally::failure(format!("{error:#}")),
                started.elapsed(),
            );
        } else {
            let mut beside = Beside::of(&layers);
            for layer in &layers {
                for building in &mut beside {
                    let waited = Instant::now();
                    if let Err(error) = building.before(*layer) {
                        eprintln!("error: {error:#}");
                        report.add(
                            building.what,
                            Tally::failure(format!("{error:#}")),
                            waited.elapsed(),
                        );
                    }
                }
                step(format_args!("layer {layer}"));
                let started = Instant::now();
                // One layer that cannot run must not hide what the others say.
                let tally = layer.run(&self.arguments).unwrap_or_else(|error| {
                    eprintln!("error: {error:#}");
                    Tally::failure(layer.to_string())
                });
                report.add(&layer.to_string(), tally, started.elapsed());
            }
        }
        // Whoever chose tests by name knows which he left out.
        if self.arguments.is_empty() {
            report.settle(&Layer::Vm.to_string());
        }
        print!("{report}");
        Ok(if report.passed() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn chosen(&self) -> Vec<Layer> {
        let mut layers = if self.layers.is_empty() {
            Layer::in_ci()
        } else {
            self.layers.clone()
        };
        layers.sort();
        layers.dedup();
        layers
    }
}

fn prepare(layers: &[Layer]) -> Result<()> {
    let groups: Vec<_> = layers.iter().flat_map(|layer| layer.needs()).copied().collect();
    setup::ensure(&groups)?;
    if layers.contains(&Layer::Netns) {
        build::next_release()?;
    }
    if layers.iter().any(|layer| layer.needs_build()) {
        Build::default().run()?;
    }
    Ok(())
}

/// What takes long to build, and most of that time one processor: it is built while those layers run that leave one idle.
struct Beside {
    what: &'static str,
    /// The layer with which it begins.
    from: Layer,
    state: Building,
}

enum Building {
    NotNeeded,
    Wanted(fn() -> Result<()>),
    Begun(JoinHandle<Result<()>>),
}

impl Beside {
    /// Kubernetes' programs, which need nothing of ours, and the image.
    fn of(layers: &[Layer]) -> [Self; 2] {
        let programs = if layers.contains(&Layer::Cluster) {
            Building::Wanted(cluster::all_programs)
        } else if layers.contains(&Layer::Kubernetes) {
            Building::Wanted(|| cluster::programs().map(drop))
        } else {
            Building::NotNeeded
        };
        let image = if layers.iter().any(|layer| layer.needs_image()) {
            Building::Wanted(|| Image::default().run())
        } else {
            Building::NotNeeded
        };
        [
            Self {
                what: "Kubernetes' programs",
                from: Layer::Lint,
                state: programs,
            },
            Self {
                what: "the image",
                from: Layer::Packets,
                state: image,
            },
        ]
    }

    /// Starts it or waits for it, as this layer has it.
    fn before(&mut self, layer: Layer) -> Result<()> {
        if let Building::Wanted(build) = self.state
            && layer >= self.from
        {
            step(format_args!("{}, beside what follows", self.what));
            self.state = Building::Begun(thread::spawn(build));
        }
        if layer.leaves_a_processor() {
            return Ok(());
        }
        match mem::replace(&mut self.state, Building::NotNeeded) {
            Building::Begun(build) => build
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            before => {
                self.state = before;
                Ok(())
            }
        }
    }
}

// Sharing the processor with others.
//
// llama.cpp's threads (OpenMP) wait for each other by spinning. On a machine that others use too, a spinning thread
// takes the time that the thread it waits for needs: measured on 2 cores with 4 compilers running, 1.7 tokens/s instead
// of 27. OMP_WAIT_POLICY=passive makes them sleep, which costs a little on a quiet machine. The OpenMP runtime reads it
// before main() begins, so a process that wants it has to start itself again.
#pragma once

namespace mikv::cli {

/// Share of the processors' time that nobody used while this call slept for `milliseconds`; 1 if it cannot be known.
double idle_share(int milliseconds);

/// Starts the process again with sleeping threads if the machine is busy now and the user has not chosen otherwise.
/// To be called before anything else; returns if there is nothing to do.
void sleep_instead_of_spin_if_busy(char** argv);

}  // namespace mikv::cli

/* mpi_exchange BYTES ITERATIONS, under mpirun: every rank sends a tensor to the next of a ring,
 * receives that of the one before, and averages it with its own. Rank 0 prints one line of JSON:
 * the median of its times. Compiled by benchmarks/exchange.py where mpicc is installed. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

static int by_size(const void* a, const void* b) {
  const double left = *(const double*)a;
  const double right = *(const double*)b;
  return (left > right) - (left < right);
}

static void average(float* restrict own, const float* restrict other, size_t numel) {
  for (size_t k = 0; k < numel; ++k) own[k] = 0.5F * (own[k] + other[k]);
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0;
  int size = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const size_t numel = argc > 1 ? strtoull(argv[1], NULL, 10) / sizeof(float) : 0;
  const int rounds = argc > 2 ? atoi(argv[2]) : 0;
  if (numel == 0 || rounds < 1) {
    fprintf(stderr, "usage: mpi_exchange BYTES ITERATIONS\n");
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  float* own = malloc(numel * sizeof(float));
  float* other = malloc(numel * sizeof(float));
  double* times = malloc((size_t)rounds * sizeof(double));
  for (size_t k = 0; k < numel; ++k) own[k] = other[k] = (float)rank;
  for (int round = -2; round < rounds; ++round) {
    MPI_Barrier(MPI_COMM_WORLD);
    const double began_s = MPI_Wtime();
    MPI_Sendrecv(own, (int)numel, MPI_FLOAT, (rank + 1) % size, 0, other, (int)numel, MPI_FLOAT,
                 (rank + size - 1) % size, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    average(own, other, numel);
    MPI_Barrier(MPI_COMM_WORLD);
    if (round >= 0) times[round] = MPI_Wtime() - began_s;
  }
  qsort(times, (size_t)rounds, sizeof(double), by_size);
  if (rank == 0) {
    printf("{\"ranks\": %d, \"bytes\": %zu, \"p50_s\": %.9f}\n", size, numel * sizeof(float),
           times[rounds / 2]);
  }
  free(own);
  free(other);
  free(times);
  MPI_Finalize();
  return 0;
}

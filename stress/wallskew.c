/* Moves the wall clock of one process by WALLSKEW_S seconds and leaves every other clock and all waiting alone.
   cc -shared -fPIC -O2 -o wallskew.so wallskew.c -ldl   then   LD_PRELOAD=./wallskew.so WALLSKEW_S=-600 python … */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

typedef int (*clock_gettime_t)(clockid_t, struct timespec *);

static time_t skew_s(void) {
  const char *text = getenv("WALLSKEW_S");
  return text ? (time_t)atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static clock_gettime_t real;
  if (!real) real = (clock_gettime_t)dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += skew_s();
  return result;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}

int gettimeofday(struct timeval *out, void *zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) {
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
  }
  return 0;
}

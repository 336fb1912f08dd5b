#include "threads.h"

#include <stdlib.h>

namespace evs {
namespace {

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

template <typename T>
T get(const T &value) {
    return __atomic_load_n(&value, __ATOMIC_SEQ_CST);
}

template <typename T>
void set(T &value, T to) {
    __atomic_store_n(&value, to, __ATOMIC_SEQ_CST);
}

}  // namespace

template <typename Ready>
void Pool::wait(Condition &condition, int &sleepers, Ready ready) {
    const int64_t deadline = now_ns() + kSpinNs;
    do {
        for (int i = 0; i < 100; i++) {
            if (ready()) return;
            pause();
        }
        yield_thread();  // where there are more threads than cores, another may have the work
    } while (now_ns() < deadline);
    mutex_.lock();
    __atomic_fetch_add(&sleepers, 1, __ATOMIC_SEQ_CST);
    while (!ready()) condition.wait(mutex_);
    __atomic_fetch_sub(&sleepers, 1, __ATOMIC_SEQ_CST);
    mutex_.unlock();
}

// Call after what the others wait for has been set: whoever does not see it counts as a sleeper by then.
void Pool::wake(Condition &condition, const int &sleepers) {
    if (get(sleepers) == 0) return;
    mutex_.lock();
    condition.wake_all();
    mutex_.unlock();
}

Pool::Pool(int threads) {
    if (threads < 2) return;
    workers_ = static_cast<Worker *>(calloc(size_t(threads) - 1, sizeof(Worker)));
    ids_ = static_cast<int *>(calloc(size_t(threads) - 1, sizeof(int)));
    if (workers_ == nullptr || ids_ == nullptr) return;
    for (int i = 1; i < threads; i++) {
        Worker &w = workers_[i - 1];
        w.pool = this, w.number = i;
        if (!start_thread(w.thread, start, &w)) break;
        threads_++;
    }
}

Pool::~Pool() {
    set(stop_, 1);
    wake(begin_, begin_sleepers_);
    for (int i = 1; i < threads_; i++) join_thread(workers_[i - 1].thread);
    free(workers_), free(ids_);
}

ThreadResult EVS_THREAD_CALL Pool::start(void *argument) {
    Worker &w = *static_cast<Worker *>(argument);
    Pool &p = *w.pool;
    set(p.ids_[w.number - 1], thread_id());
    for (uint32_t seen = 0;;) {
        p.wait(p.begin_, p.begin_sleepers_, [&] { return get(p.round_) != seen || get(p.stop_); });
        if (get(p.stop_)) return {};
        seen++;
        p.work(w.number);
        if (__atomic_sub_fetch(&p.busy_, 1, __ATOMIC_SEQ_CST) == 0) p.wake(p.end_, p.end_sleepers_);
    }
}

void Pool::work(int thread) {
    for (;;) {
        const int item = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED);
        if (item >= count_) return;
        task_(context_, item, thread);
    }
}

void Pool::run(int count, Task task, void *context) {
    count_ = count, next_ = 0, task_ = task, context_ = context;
    if (threads_ > 1) {
        set(busy_, threads_ - 1);
        set(round_, round_ + 1);
        if (get(begin_sleepers_) > 0) leave_my_processor(ids_, threads_ - 1);
        wake(begin_, begin_sleepers_);
    }
    work(0);
    if (threads_ > 1) wait(end_, end_sleepers_, [&] { return get(busy_) == 0; });
}

}  // namespace evs

! Fortran 77: mpif.h, handles that are integers, addresses from MPI_BOTTOM, persistent requests, a user operation, an attribute, buffers
! that are both ends of a reduction. f77 [ROUNDS]
      subroutine later(a, b, n, kind)
! First one linear function, and then another: the order matters.
      implicit none
      integer n, kind, i
      integer a(2, n), b(2, n)
      do 10 i = 1, n
        b(2, i) = mod(b(1, i) * a(2, i) + b(2, i), 1009)
        b(1, i) = mod(b(1, i) * a(1, i), 1009)
   10 continue
      end

      program f77
      implicit none
      include 'mpif.h'
      external later
      interface
        integer(4) function usleep(microseconds) bind(c)
          integer(4), value :: microseconds
        end function
      end interface
      integer rank, ranks, rounds, round, i, ierr, next, prev
      integer op, kind, spread, pair, key, own, line, requests(2)
      integer statuses(MPI_STATUS_SIZE, 2), lengths(2), types(2)
      integer sent(6), got(6), both(4), whole(4), gap(12), count
      integer(kind=MPI_ADDRESS_KIND) places(2), value
      integer*8 sum
      logical flag
      double precision before
      character*32 word
      common /shared/ sent, got
      call MPI_INIT(ierr)
      call getarg(1, word)
      rounds = 100
      if (len_trim(word) .gt. 0) read (word, *) rounds
      call MPI_COMM_RANK(MPI_COMM_WORLD, rank, ierr)
      call MPI_COMM_SIZE(MPI_COMM_WORLD, ranks, ierr)
      call MPI_COMM_SPLIT(MPI_COMM_WORLD, 0, rank, line, ierr)
      call MPI_COMM_CREATE_KEYVAL(MPI_NULL_COPY_FN, MPI_NULL_DELETE_FN,
     &  key, 0_MPI_ADDRESS_KIND, ierr)
      value = 4711 + rank
      call MPI_COMM_SET_ATTR(line, key, value, ierr)
      next = mod(rank + 1, ranks)
      prev = mod(rank + ranks - 1, ranks)
      call MPI_TYPE_CONTIGUOUS(2, MPI_INTEGER, pair, ierr)
      call MPI_TYPE_COMMIT(pair, ierr)
      call MPI_OP_CREATE(later, .false., op, ierr)
! The first two and the last one of six, by their addresses.
      call MPI_GET_ADDRESS(sent(1), places(1), ierr)
      call MPI_GET_ADDRESS(sent(6), places(2), ierr)
      lengths(1) = 2
      lengths(2) = 1
      types(1) = MPI_INTEGER
      types(2) = MPI_INTEGER
      call MPI_TYPE_CREATE_STRUCT(2, lengths, places, types, kind, ierr)
      call MPI_TYPE_COMMIT(kind, ierr)
      call MPI_TYPE_VECTOR(4, 1, 3, MPI_INTEGER, spread, ierr)
      call MPI_TYPE_COMMIT(spread, ierr)
      call MPI_SEND_INIT(MPI_BOTTOM, 1, kind, next, 5, line,
     &  requests(1), ierr)
      call MPI_RECV_INIT(got, 3, MPI_INTEGER, MPI_ANY_SOURCE, 5, line,
     &  requests(2), ierr)
      sum = 0
      before = MPI_WTIME()
      do 50 round = 1, rounds
        do 20 i = 1, 6
          sent(i) = 1000 * round + 10 * i + rank
   20   continue
        call MPI_STARTALL(2, requests, ierr)
        call MPI_WAITALL(2, requests, statuses, ierr)
        call MPI_GET_COUNT(statuses(1, 2), MPI_INTEGER, count, ierr)
        if (count .ne. 3 .or. statuses(MPI_SOURCE, 2) .ne. prev)
     &    stop 'wrong status'
        if (got(1) .ne. 1000 * round + 10 + prev .or.
     &      got(2) .ne. 1000 * round + 20 + prev .or.
     &      got(3) .ne. 1000 * round + 60 + prev) stop 'wrong message'
        do 30 i = 1, 4
          both(i) = mod(rank * i + round, 1009)
   30   continue
        call MPI_REDUCE(both, whole, 2, pair, op, 0, line, ierr)
        call MPI_ALLREDUCE(MPI_IN_PLACE, both, 2, pair, op, line, ierr)
        if (rank .eq. 0 .and. any(both .ne. whole)) stop 'wrong sum'
        gap = -1
        call MPI_SENDRECV(both, 4, MPI_INTEGER, rank, 6, gap, 1, spread,
     &    rank, 6, line, MPI_STATUS_IGNORE, ierr)
        do 40 i = 1, 4
          if (gap(3 * i - 2) .ne. both(i)) stop 'wrong vector'
          sum = mod(sum * 31 + both(i), 1000000007_8)
   40   continue
        if (MPI_WTIME() .lt. before) stop 'the clock goes back'
        before = MPI_WTIME()
        call MPI_COMM_GET_ATTR(line, key, value, flag, ierr)
        if (.not. flag .or. value .ne. 4711 + rank) stop 'no attribute'
        call MPI_COMM_COMPARE(line, MPI_COMM_WORLD, own, ierr)
        if (own .ne. MPI_CONGRUENT) stop 'another communicator'
        ierr = usleep(1000)
   50 continue
      call MPI_REQUEST_FREE(requests(1), ierr)
      call MPI_REQUEST_FREE(requests(2), ierr)
      call MPI_TYPE_FREE(kind, ierr)
      call MPI_TYPE_FREE(spread, ierr)
      call MPI_TYPE_FREE(pair, ierr)
      call MPI_OP_FREE(op, ierr)
      call MPI_COMM_FREE_KEYVAL(key, ierr)
      call MPI_COMM_FREE(line, ierr)
      call MPI_FINALIZE(ierr)
      if (rank .eq. 0) print '(a,z16.16)', 'result ', sum
      if (rank .eq. 0) print '(a)', 'EXIT-SUCCESS'
      end
